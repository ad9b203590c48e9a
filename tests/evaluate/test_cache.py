"""What was answered is not asked again, and a store without room forgets what was asked least lately."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.evaluate import Evaluation, PredictionCache
from cltrain.evaluate.cache import FOLDER, INDEX, digest_rows, score_here
from cltrain.evaluate.checks import Checks
from cltrain.evaluate.sample import Sample
from cltrain.records import EVENT_ID, ReportCard
from cltrain.storage import Storage

NONE = Checks(labels=None, importance_rows=0)  # they ask for rows of their own


@dataclass
class Version:
    """Answers with a column of the table, and counts the rows that it was asked for but for those of the stopwatch."""

    column: str
    task: str = "regression"
    size_bytes: int = 8
    asked: list[int] = field(default_factory=list)

    def score(self, table: pa.Table) -> Sample:
        if table.num_rows > 1:
            self.asked.append(table.num_rows)
        p, y = np.asarray(table.column(self.column)), np.asarray(table.column("_y"))
        return Sample(self.task, p, y, np.square(p - y))


def rows(count: int, seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    y, x = generator.normal(size=(2, count))
    shop = np.array(list("abc"))[generator.integers(0, 3, count)]
    ids = [f"{seed}-{i}" for i in range(count)]
    noise = generator.normal(size=(2, count))
    return pa.table({EVENT_ID: ids, "_y": y, "_a": y + noise[0], "_b": y + noise[1], "x": x, "shop": shop})


def same(a: ReportCard, b: ReportCard) -> bool:
    parts = ("comparisons", "transfer", "slices", "findings", "reliability", "spots")
    return all(getattr(a, part) == getattr(b, part) for part in parts)


def test_the_same_card_without_asking_again(tmp_path: Path) -> None:
    held_out = [(i, rows(300, i)) for i in range(3)]
    evaluation = Evaluation(slices=("x > 0", {"column": "shop", "min_rows": 10}), spots=4, checks=NONE)
    ours, theirs = Version("_a"), Version("_b")
    plain = evaluation.card(ours, theirs, held_out, 0)
    cache = PredictionCache(storage=Storage(tmp_path))
    for asked in (6, 6):
        card = evaluation.card(ours, theirs, held_out, 0, cache=cache.of((ours, "1.1"), (theirs, "1.0")))
        assert same(card, plain)
        assert len(ours.asked) == len(theirs.asked) == asked
    # A window more, and other settings: only the new rows are asked for, and what is compared is compared anew.
    more = [*held_out, (3, rows(200, 3))]
    other = Evaluation(slices=("x > 1",), level=0.1, checks=NONE)
    card = other.card(ours, theirs, more, 0, cache=cache.of((ours, "1.1"), (theirs, "1.0")))
    assert ours.asked[6:] == [200]
    assert same(card, other.card(ours, theirs, more, 0))


def test_versions_and_rows_are_told_apart(tmp_path: Path) -> None:
    held_out = [(0, rows(300, 0))]
    cache = PredictionCache(storage=Storage(tmp_path))
    ours, theirs = Version("_a"), Version("_b")
    Evaluation(checks=NONE).card(ours, theirs, held_out, 0, cache=cache.of((ours, "1.1"), (theirs, "1.0")))
    turned = Evaluation(checks=NONE).card(theirs, ours, held_out, 0, cache=cache.of((theirs, "1.0"), (ours, "1.1")))
    assert same(turned, Evaluation(checks=NONE).card(theirs, ours, held_out, 0))
    altered = held_out[0][1].set_column(4, "x", pa.array(np.zeros(300)))
    before = len(ours.asked)
    Evaluation(checks=NONE).card(ours, None, [(0, altered)], 0, cache=cache.of((ours, "1.1")))
    assert len(ours.asked) == before + 1
    assert digest_rows(altered) != digest_rows(held_out[0][1]) == digest_rows(rows(300, 0))
    codes = [pa.table({"x": pa.array(values).dictionary_encode()}) for values in (["a", "b"], ["a", "c"])]
    assert digest_rows(codes[0]) != digest_rows(codes[1])


def test_what_was_asked_least_lately_goes_first(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    cache = PredictionCache(storage=storage, max_bytes=120_000)
    table = rows(400, 0)  # 9.6 kB a version

    def ask(name: str) -> int:
        version = Version("_a")
        remembered = cache.of((version, name))
        remembered.scoring(score_here)(version, [(0, table)])
        remembered.close()
        return len(version.asked)

    assert [ask(name) for name in "abcdefgh"] == [1] * 8
    assert ask("a") == 0
    for name in "ijkl":
        ask(name)
    size = sum((tmp_path / name).stat().st_size for name in storage.names(FOLDER) if name != INDEX)
    assert 0 < size <= 120_000
    assert [ask("a"), ask("b")] == [0, 1]


def test_of_one_version_the_latest_rows_stay(tmp_path: Path) -> None:
    cache = PredictionCache(storage=Storage(tmp_path), max_bytes=8 * 24 * 1_000)
    version = Version("_a")
    for index in range(4):
        remembered = cache.of((version, "a"))
        remembered.scoring(score_here)(version, [(index, rows(400, index))])
        remembered.close()
    version.asked.clear()
    cache.of((version, "a")).scoring(score_here)(version, [(i, rows(400, i)) for i in (3, 2)])
    assert version.asked == []
    cache.of((version, "a")).scoring(score_here)(version, [(0, rows(400, 0))])
    assert version.asked == [400]


@pytest.mark.parametrize("damage", [b"", b"no arrow"])
def test_a_damaged_or_deleted_cache_is_made_again(tmp_path: Path, damage: bytes) -> None:
    storage, version, held_out = Storage(tmp_path), Version("_a"), [(0, rows(100, 0))]
    cache = PredictionCache(storage=storage)
    card = Evaluation(checks=NONE).card(version, None, held_out, 0, cache=cache.of((version, "a")))
    for name in storage.names(FOLDER):
        (tmp_path / name).write_bytes(damage)
    assert same(Evaluation(checks=NONE).card(version, None, held_out, 0, cache=cache.of((version, "a"))), card)
    for name in storage.names(FOLDER):
        (tmp_path / name).unlink()
    assert same(Evaluation(checks=NONE).card(version, None, held_out, 0, cache=cache.of((version, "a"))), card)
    assert len(version.asked) == 3


def test_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        PredictionCache(storage=Storage(tmp_path), max_bytes=0)
