"""Local mode: commands in the driver's own process, for tests and small jobs. They and their results are the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cltrain.cluster.execute import obey, payload_of
from cltrain.cluster.score import gather, score_payload
from cltrain.evaluate.sample import Sample
from cltrain.evaluate.spread import ScoreRequest
from cltrain.records import Challenger, Json, UpdateRequest, from_json
from cltrain.storage import Storage


@dataclass(frozen=True, kw_only=True)
class LocalRunner:
    workers: ClassVar[int] = 1
    root: str
    threads: int = 1
    device: str = "cpu"
    engine: Json | None = None

    def update(self, request: UpdateRequest) -> Challenger:
        payload = payload_of(request, self.root, self.threads, self.device, self.engine)
        return from_json(Challenger, obey(payload, 0, 1))

    def score(self, request: ScoreRequest) -> dict[int, Sample]:
        """The answers by number of the window, its rows in their order."""
        result = obey(score_payload(request, self.root, self.threads), 0, 1)
        return gather(Storage(self.root), request, [result])

    def close(self) -> None:
        """Nothing is held."""
