"""`rounds.jsonl`: a line a round, written as the round ends."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cltrain.records import Json, Round, RunInfo, to_json
from cltrain.storage import Storage
from cltrain.tracking.base import Tracker
from cltrain.tracking.history import finite

NAME = "rounds.jsonl"


@dataclass(kw_only=True, eq=False)
class Jsonl(Tracker):
    """One JSON object a line, `cltrain.records.Round` as `to_json` writes it, in the order of the rounds.

    A line is whole or not there: each is one write at the end of the file and is taken back if the disk is full.
    """

    def __post_init__(self) -> None:
        self._path: Path | None = None

    def start(self, run: RunInfo, rounds: list[Round]) -> None:
        Storage(run.run_dir).write(NAME, b"".join(line(round_) for round_ in rounds))
        self._path = Path(run.run_dir) / NAME

    def finished(self, round_: Round) -> None:
        if self._path is None:
            raise RuntimeError("Jsonl.finished was called before start")
        append(self._path, line(round_))

    def close(self, rounds: list[Round], summary: Json) -> None:
        self._path = None


def line(round_: Round) -> bytes:
    """UTF-8 JSON of a round and a line feed; what is not a finite number is null."""
    return json.dumps(finite(to_json(round_)), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def append(path: Path, data: bytes) -> None:
    """Add `data` to the file as one piece, synced, or leave the file as it was and raise `OSError`."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(handle).st_size
        try:
            if (written := os.write(handle, data)) != len(data):
                raise OSError(f"only {written} of {len(data)} bytes fit into {path}: free some space")
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)
