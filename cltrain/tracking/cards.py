"""`cards/`: a page and a JSON file for each version of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cltrain.records import Json, Round, RunInfo
from cltrain.storage import Storage
from cltrain.tracking.base import Tracker
from cltrain.tracking.card import PLOTLY, render
from cltrain.tracking.report import _plotly
from cltrain.tracking.review import document, of_round

FOLDER = "cards"


@dataclass(kw_only=True, eq=False)
class Cards(Tracker):
    """Writes `cards/<version>.html` and `cards/<version>.json` of each version as its round ends, and once the
    `plotly.min.js` that the pages share: `cltrain card V --html FILE` makes one that needs no other file."""

    def __post_init__(self) -> None:
        self._run: RunInfo | None = None
        self._known: dict[str, Json] = {}

    def start(self, run: RunInfo, rounds: list[Round]) -> None:
        self._run = run
        self._known = {str(v["version"]): v for r in rounds for v in r.versions}

    def finished(self, round_: Round) -> None:
        if self._run is None:
            raise RuntimeError("Cards was not started")
        self._known |= {str(v["version"]): v for v in round_.versions}
        storage = Storage(self._run.run_dir)
        for item in round_.versions:
            version = str(item["version"])
            review = of_round(self._run, round_, self._known, version)
            if not storage.exists(f"{FOLDER}/{PLOTLY}"):
                storage.write(f"{FOLDER}/{PLOTLY}", _plotly().encode())
            text = json.dumps(document(review), ensure_ascii=False, allow_nan=False)
            storage.write(f"{FOLDER}/{version}.json", text.encode())
            storage.write(f"{FOLDER}/{version}.html", render(review, shared_script=True).encode())
