"""Rows that are shared out are all answered, once, and workers are asked only where that saves time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.errors import UpdateError
from cltrain.evaluate.sample import Sample, Scored
from cltrain.evaluate.spread import BLOCK_ROWS, COLD_S, Rows, ScoreRequest, Spread, blocks_of, share, stride, uniform
from cltrain.records import EVENT_ID

COUNTS = {0: 3_000, 1: 1, 2: 40_000}
NOW = [1.0]  # seconds that the scoring below has taken


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cltrain.evaluate.spread.time", SimpleNamespace(perf_counter=lambda: NOW[0]))


@dataclass
class Version:
    """Answers with a column; each row takes `row_s` seconds of the clock of the tests."""

    row_s: float = 0.0
    at_once: int = 1_000
    task: str = "regression"
    size_bytes: int = 8
    asked: list[int] = field(default_factory=list)

    def rows_at_once(self, table: pa.Table) -> int:
        return self.at_once

    def score(self, table: pa.Table) -> Sample:
        self.asked.append(table.num_rows)
        NOW[0] += self.row_s * table.num_rows
        y = np.asarray(table.column("y"))
        return Sample(self.task, y, y, y)


@dataclass
class Others:
    """Workers that answer at once, or not at all."""

    tables: Mapping[int, pa.Table]
    fail: bool = False
    asked: list[ScoreRequest] = field(default_factory=list)

    def score(self, request: ScoreRequest) -> dict[int, Scored]:
        self.asked.append(request)
        if self.fail:
            raise UpdateError("its workers were lost")
        return {rows.window: Version().score(self.tables[rows.window].slice(rows.start)) for rows in request.windows}


def tables() -> dict[int, pa.Table]:
    return {i: pa.table({EVENT_ID: [f"{i}-{n}" for n in range(c)], "y": np.arange(c) + i}) for i, c in COUNTS.items()}


def spread(version: Version, others: Others, **more: object) -> Spread:
    known = {"workers": 2, "states": [(version, "states/a")], "snapshots": {i: f"s{i}" for i in COUNTS}}
    return Spread(start=lambda: others, **{**known, **more})  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8),
    st.integers(1, 20),
    st.integers(1, 9),
)
def test_every_row_is_in_one_share(windows: list[tuple[int, int]], size: int, world: int) -> None:
    named = [Rows(window=i, snapshot="s", count=start + more, start=start) for i, (start, more) in enumerate(windows)]
    blocks = list(blocks_of(named, size))
    shares = [share(blocks, rank, world) for rank in range(world)]
    assert [block for some in shares for block in some] == blocks
    assert [(b.window, row) for b in blocks for row in range(b.start, b.end)] == [
        (rows.window, row) for rows in named for row in range(rows.start, rows.count)
    ]
    total, largest = sum(b.end - b.start for b in blocks), max((b.end - b.start for b in blocks), default=0)
    assert all(sum(b.end - b.start for b in some) <= total / world + largest for some in shares)


def test_blocks_are_whole_batches() -> None:
    table = tables()[1]
    assert stride(Version(at_once=1_000), table) == 2_000
    assert stride(Version(at_once=BLOCK_ROWS), table) == BLOCK_ROWS
    assert stride(Version(at_once=BLOCK_ROWS + 1), table) == BLOCK_ROWS + 1


def test_a_sample_is_the_same_wherever_it_is_taken() -> None:
    table = tables()[2]
    assert uniform(table, 50_000) is table
    some = uniform(table, 500)
    assert some.num_rows == 500
    assert some.equals(uniform(pa.concat_tables([table.slice(0, 7), table.slice(7)]), 500))


def test_what_takes_little_is_scored_here() -> None:
    version, others = Version(), Others(tables())
    found = spread(version, others)(version, list(tables().items()))
    assert not others.asked
    for index, table in tables().items():
        assert np.array_equal(found[index].predictions, table.column("y"))


@pytest.mark.parametrize("fail", [False, True])
def test_what_takes_long_is_left_to_workers_and_comes_back_in_order(
    fail: bool, caplog: pytest.LogCaptureFixture
) -> None:
    version, others = Version(row_s=1e-4), Others(tables(), fail)
    found = spread(version, others)(version, list(tables().items()))
    (request,) = others.asked
    assert request.state == "states/a"
    here = [2_000, 1_000, 1, 2_000]  # the first block warms up, and fewer rows than a block's say little
    assert version.asked == (here if not fail else [*here, 38_000])
    assert [(rows.window, rows.snapshot, rows.start, rows.count) for rows in request.windows] == [
        (2, "s2", 2_000, 40_000)
    ]
    assert ("its workers were lost" in caplog.text) == fail
    for index, table in tables().items():
        assert np.array_equal(found[index].predictions, table.column("y"))


def test_a_slow_version_goes_to_workers_after_a_few_rows() -> None:
    """A slow version has shown after a few rows that it is slow."""
    version, others = Version(row_s=1e-3, at_once=500), Others(tables())
    found = spread(version, others)(version, list(tables().items()))
    assert version.asked == [2_000, 1_000]
    assert [(rows.window, rows.start) for rows in others.asked[0].windows] == [(1, 0), (2, 0)]
    assert np.array_equal(found[2].predictions, tables()[2].column("y"))


@pytest.mark.parametrize("more", [{"workers": 1}, {"states": []}, {"snapshots": {}}])
def test_without_workers_or_rows_that_they_could_read_all_is_scored_here(more: dict[str, object]) -> None:
    version, others = Version(row_s=1.0), Others(tables())
    spread(version, others, **more)(version, list(tables().items()))
    assert version.asked == list(COUNTS.values())
    assert not others.asked


def test_workers_that_were_started_are_asked_for_less() -> None:
    version, others = Version(row_s=1e-3), Others(tables())
    asked = spread(version, others, worth_s=COLD_S)
    asked(version, [(2, tables()[2].slice(0, 30_000))])
    assert not others.asked, "15 s would be saved"
    version.row_s = 1e-2
    asked(version, list(tables().items()))
    version.row_s = 1e-3
    asked(version, [(2, tables()[2].slice(0, 30_000))])
    assert len(others.asked) == 2
