"""Local mode: updates in the driver's own process, for tests and small jobs. The commands and results are the same."""

from __future__ import annotations

from dataclasses import dataclass

from cltrain.cluster.execute import execute, payload_of
from cltrain.records import Challenger, Json, UpdateRequest, from_json


@dataclass(frozen=True, kw_only=True)
class LocalRunner:
    root: str
    threads: int = 1
    device: str = "cpu"
    engine: Json | None = None

    def update(self, request: UpdateRequest) -> Challenger:
        return from_json(Challenger, execute(payload_of(request, self.root, self.threads, self.device, self.engine)))

    def close(self) -> None:
        """Nothing is held."""
