"""Scoring shared out over workers: rows are named by their snapshot and read where they are scored, in the very
batches of one process, so that the answers are the same bits however many workers there are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from cltrain.errors import UpdateError
from cltrain.evaluate.cache import Scorer, Windows, score_here
from cltrain.evaluate.sample import Sample, Scored
from cltrain.records import EVENT_ID
from cltrain.seeding import derive_seed, hash_ids

log = logging.getLogger(__name__)

BLOCK_ROWS = 2_048
WARM_S, COLD_S = 1.0, 30.0  # what workers must save to be asked: those that are there, and those to be started first


class Block(NamedTuple):
    """Rows `[start, end)` of a window, which are scored at once."""

    window: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a window as a worker finds them: of the `count` that a uniform sample takes from a snapshot (all, where
    it has no more), those from `start` on."""

    window: int
    snapshot: str
    count: int
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Rows that a version is asked about, complete: a worker that has this and the store needs nothing else. state: the
    folder of the version's state in the blob root."""

    state: str
    windows: tuple[Rows, ...]


class Workers(Protocol):
    """See `cltrain.cluster`. Raises `UpdateError` where the workers cannot answer."""

    def score(self, request: ScoreRequest) -> Mapping[int, Scored]: ...


class BlockScorer(Scorer, Protocol):
    """A version that says how many rows it takes at once: rows that are split there are answered alike."""

    def rows_at_once(self, table: pa.Table) -> int: ...


def uniform(table: pa.Table, count: int) -> pa.Table:
    """A uniform sample of `count` rows, in their order, by a hash of the id."""
    if table.num_rows <= count:
        return table
    order = np.argsort(hash_ids(table.column(EVENT_ID), salt=derive_seed(0, "evaluation")), kind="stable")[:count]
    return table.take(pa.array(np.sort(order)))


def stride(version: BlockScorer, table: pa.Table) -> int:
    """Rows of a block: about `BLOCK_ROWS`, and a multiple of what the version takes at once."""
    at_once = version.rows_at_once(table)
    return max(1, BLOCK_ROWS // at_once) * at_once


def blocks_of(windows: Sequence[Rows], size: int) -> Iterator[Block]:
    """The rows of all windows, `size` at a time; no block has rows of two windows."""
    for rows in windows:
        for start in range(rows.start, rows.count, size):
            yield Block(rows.window, start, min(start + size, rows.count))


def share(blocks: Sequence[Block], rank: int, world: int) -> list[Block]:
    """Those of rank `rank` of `world`: a run of neighbours with about as many rows as those of any other.

    >>> blocks = [Block(0, 0, 8), Block(0, 8, 16), Block(1, 0, 4)]
    >>> share(blocks, 0, 2), share(blocks, 1, 2)
    ([Block(window=0, start=0, end=8)], [Block(window=0, start=8, end=16), Block(window=1, start=0, end=4)])
    """
    rows = np.array([block.end - block.start for block in blocks])
    middle = rows.cumsum() - rows / 2
    return [block for block, place in zip(blocks, middle, strict=True) if int(place * world / rows.sum()) == rank]


@dataclass(kw_only=True)
class Spread:
    """What an evaluation asks versions with (`score=` of `Evaluation.card`): it scores here, and once the rows that are
    left would take so long that workers save `worth_s` seconds or more, it leaves those to the workers. Where these
    fail it goes on here.

    workers: how many there are. start: gives them; called when they are needed. states: folder of each version's state.
    snapshots: digest by number of the window, of those whose rows `uniform` takes from a snapshot. Once workers were
    started, `worth_s` is `WARM_S` at most."""

    workers: int
    start: Callable[[], Workers]
    states: Sequence[tuple[Any, str]]
    snapshots: Mapping[int, str]
    worth_s: float = WARM_S

    def __call__(self, version: Any, windows: Windows) -> Mapping[int, Scored]:
        state = next((state for known, state in self.states if known is version), None)
        if self.workers < 2 or state is None or not all(index in self.snapshots for index, _ in windows):
            return score_here(version, windows)
        tables = dict(windows)
        named = [Rows(window=i, snapshot=self.snapshots[i], count=table.num_rows) for i, table in windows]
        blocks = list(blocks_of(named, stride(version, windows[0][1])))
        parts: dict[int, list[Scored]] = {index: [] for index in tables}
        left = sum(rows.count for rows in named)
        done, began = 0, 0.0  # since the first block, which may have to warm up
        for number, block in enumerate(blocks):
            spent = time.perf_counter() - began
            told = done >= BLOCK_ROWS or (
                done > 0 and spent >= self.worth_s
            )  # a few rows do not say how long many take
            if told and spent / done * left * (1 - 1 / self.workers) >= self.worth_s:
                parts = self._ask(state, _from(block, named), parts, version, tables)
                break
            if number:
                done += block.end - block.start
            parts[block.window].append(version.score(tables[block.window].slice(block.start, block.end - block.start)))
            left -= block.end - block.start
            began = began or time.perf_counter()
        return {index: Sample.of(found) for index, found in parts.items()}

    def _ask(
        self, state: str, rest: Sequence[Rows], parts: dict[int, list[Scored]], version: Scorer, tables: Any
    ) -> dict[int, list[Scored]]:
        """`parts`, with the answers for the `rest` behind them."""
        try:
            workers = self.start()
            self.worth_s = min(self.worth_s, WARM_S)
            found = workers.score(ScoreRequest(state=state, windows=tuple(rest)))
        except UpdateError as error:
            log.warning("the workers cannot score, so it is done here: %s", error)
            found = score_here(version, [(rows.window, tables[rows.window].slice(rows.start)) for rows in rest])
        return {index: [*known, found[index]] if index in found else known for index, known in parts.items()}


def _from(block: Block, windows: Sequence[Rows]) -> list[Rows]:
    """The rows from a block on."""
    first = next(i for i, rows in enumerate(windows) if rows.window == block.window)
    begun = windows[first]
    return [
        Rows(window=begun.window, snapshot=begun.snapshot, count=begun.count, start=block.start),
        *windows[first + 1 :],
    ]
