"""Answers that were already given: what a version said of rows is kept in the store, so that the champion is not asked
again and an evaluation with other slices or metrics costs no scoring."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError, StoreError
from cltrain.evaluate.sample import Sample, Scored
from cltrain.records import Json
from cltrain.storage import Storage, digest_bytes, digest_json, read_arrow, write_arrow

FOLDER = "cache/predictions"
INDEX = f"{FOLDER}/index.json"
ROW_BYTES = 24
FORMAT = 1  # of comparisons: another one where what is measured changes


class Scorer(Protocol):
    """A version that can be asked; see `cltrain.train.predictor.Predictor`."""

    @property
    def task(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def score(self, table: pa.Table) -> Scored: ...


Windows = Sequence[tuple[int, pa.Table]]
Score = Callable[[Scorer, Windows], Mapping[int, Scored]]


class Memory(Protocol):
    """What an evaluation need not do again; `Remembered` is one."""

    def scoring(self, score: Score) -> Score: ...
    def once(self, about: Json, windows: Sequence[int], produce: Callable[[], Any]) -> Any: ...
    def close(self) -> None: ...


def score_here(version: Scorer, windows: Windows) -> dict[int, Scored]:
    """The rows of each window, by its number, scored in this process."""
    return {index: version.score(rows) for index, rows in windows}


@dataclass(frozen=True, kw_only=True)
class PredictionCache:
    """Below `cache/predictions` of the store, which may be deleted at any time: for each version a file with its
    answers by digest of the rows, and for each pair of versions one with the comparisons by digest of all that they
    depend on. max_bytes: of all files together; what was asked least lately goes first, and of one version, whose file
    has an eighth at most, the rows. Of two processes that write at once one may lose what it kept, never what it
    answers.

        cache = PredictionCache(storage=storage).of((challenger, "digest of its state"), (champion, "…"))
        evaluation.card(challenger, champion, held_out, seed, cache=cache)
    """

    storage: Storage
    max_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes of a prediction cache must be 1 or more, not {self.max_bytes}")

    def of(self, *names: tuple[Scorer, str]) -> Remembered:
        """What is remembered of these versions. names: of each, all that its answers depend on: its weights, its
        encoder and its model."""
        return Remembered(self, tuple((version, digest_bytes(name.encode())[:32]) for version, name in names))

    def read(self, name: str, task: str) -> dict[str, Scored]:
        """The answers by digest of their rows, those asked last first. A file that cannot be read counts as none."""
        try:
            if not self.storage.exists(name):
                return {}
            table = read_arrow(self.storage.local_copy(name))
            sizes = [part.split(":") for part in (table.schema.metadata or {})[b"rows"].decode().split(",")]
            columns = [np.asarray(table.column(c)) for c in ("prediction", "target", "loss")]
        except (StoreError, pa.ArrowInvalid, OSError, KeyError, ValueError):
            return {}
        found: dict[str, Scored] = {}
        start = 0
        for digest, count in sizes:
            end = start + int(count)
            predictions, target, losses = (column[start:end] for column in columns)
            found[digest] = Sample(task, predictions, target, losses)
            start = end
        return found

    def write(self, name: str, answers: Mapping[str, Scored]) -> None:
        room = self.max_bytes // 8 // ROW_BYTES
        fitting: dict[str, Scored] = {}
        for digest, answer in answers.items():
            room -= len(answer.target)
            if room >= 0:
                fitting[digest] = answer
        if not fitting:
            return
        columns = {"prediction": "predictions", "target": "target", "loss": "losses"}
        table = pa.table(
            {c: np.concatenate([getattr(a, field) for a in fitting.values()]) for c, field in columns.items()}
        )
        sizes = ",".join(f"{digest}:{len(answer.target)}" for digest, answer in fitting.items())
        with self.storage.writing(name) as path:
            write_arrow(path, table.replace_schema_metadata({"rows": sizes}))

    def read_comparisons(self, name: str) -> dict[str, Any]:
        try:
            return self.storage.read_json(name) if self.storage.exists(name) else {}
        except StoreError:
            return {}

    def touch(self, *names: str) -> None:
        """Note that these files were asked, and make room."""
        there = {file for file in self.storage.names(FOLDER) if file != INDEX}
        try:
            order = self.storage.read_json(INDEX) if self.storage.exists(INDEX) else []
        except StoreError:
            order = []
        known = {entry: size for entry, size in order if entry in there}
        sizes = {entry: self._size(entry) for entry in sorted(there - known.keys())} | known
        for name in names:
            if name in there:
                sizes.pop(name)
                sizes[name] = self._size(name)
        for oldest in list(sizes):
            if sum(sizes.values()) > self.max_bytes:
                self.storage.delete(oldest)
                del sizes[oldest]
        if [list(entry) for entry in sizes.items()] != order:
            self.storage.write_json(INDEX, list(sizes.items()))

    def _size(self, name: str) -> int:
        return self.storage.local_copy(name).stat().st_size


@dataclass
class Remembered:
    """What `cache` has of versions, each with its digest. `digests` are those of the rows of each window, known once
    it was scored."""

    cache: PredictionCache
    versions: tuple[tuple[Scorer, str], ...]
    digests: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pair = f"{FOLDER}/{digest_json([name for _, name in self.versions])[:32]}.json"
        self._known = self.cache.read_comparisons(self._pair)
        self._asked: dict[str, Any] = {}

    def scoring(self, score: Score) -> Score:
        """`score`, asked only for windows whose rows a version has not answered before."""

        def remembered(version: Scorer, windows: Windows) -> Mapping[int, Scored]:
            for index, rows in windows:
                if index not in self.digests:
                    self.digests[index] = digest_rows(rows)
            name = next((name for known, name in self.versions if known is version), None)
            if name is None:
                return score(version, windows)
            return self._remembered(version, f"{FOLDER}/{name}.arrow", windows, score)

        return remembered

    def _remembered(self, version: Scorer, file: str, windows: Windows, score: Score) -> Mapping[int, Scored]:
        kept = self.cache.read(file, version.task)
        missing = [(index, rows) for index, rows in windows if self.digests[index] not in kept]
        fresh = score(version, missing) if missing else {}
        answers = {i: fresh[i] if i in fresh else kept[self.digests[i]] for i, _ in windows}
        if missing:
            asked = {self.digests[index]: answer for index, answer in answers.items()}
            self.cache.write(file, asked | {digest: answer for digest, answer in kept.items() if digest not in asked})
        return answers

    def once(self, about: Json, windows: Sequence[int], produce: Callable[[], Any]) -> Any:
        """What `produce` makes, which is JSON, unless it was made before of the same answers. about: all else that it
        depends on."""
        key = digest_json([FORMAT, about, [self.digests[index] for index in windows]])
        if key not in self._known:
            self._known[key] = produce()
        self._asked[key] = self._known[key]
        return self._known[key]

    def close(self) -> None:
        """Keep what was asked this time, the latest comparisons of the pair, and make room for it."""
        before = self.cache.read_comparisons(self._pair)
        if before != self._asked:
            with contextlib.suppress(ValueError):  # a loss that is no number has no JSON, and is not worth keeping
                self.cache.storage.write_json(self._pair, self._asked)
        self.cache.touch(*(f"{FOLDER}/{name}.arrow" for _, name in self.versions), self._pair)


def digest_rows(table: pa.Table) -> str:
    """Names rows by their content, columns and their order."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None))
    return hashlib.blake2b(sink.getvalue(), digest_size=16).hexdigest()
