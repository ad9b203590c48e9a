"""A version's data beside those of the version before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cltrain.assemble import open_store, run_loop
from cltrain.data.snapshot import cache_name
from cltrain.drift import drift
from cltrain.records import Snapshot
from cltrain.registry import Registry
from cltrain.reviews import review_of
from cltrain.storage import Storage, write_arrow
from cltrain.tracking.card import render


class Rows:
    """Snapshots that are tables by their digest, and those of some are in the cache of a store."""

    def __init__(self, storage: Storage, **tables: pa.Table) -> None:
        self.storage, self.tables = storage, tables
        for digest, table in tables.items():
            with storage.writing(cache_name(digest)) as path:
                write_arrow(path, table)

    def table(self, snapshot: Snapshot) -> pa.Table:
        return self.tables[snapshot.digest]


def of(digest: str) -> Snapshot:
    return Snapshot(digest=digest, role="train", rows=4)


def test_how_far_each_feature_moved(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows = Rows(
        storage,
        old=pa.table({"x": [-1.0, 1.0, -1.0, 1.0], "shop": ["a", "a", "b", "b"], "left": [1.0] * 4}),
        new=pa.table({"x": [3.0, None, 3.0, None], "shop": ["a", "a", "a", "b"], "came": ["u"] * 4}),
    )
    found = drift(rows, storage, of("new"), of("old"))  # type: ignore[arg-type]
    assert found["distances"] == [
        {"feature": "x", "kind": "mean", "distance": 3.0},
        {"feature": "shop", "kind": "share", "distance": 0.25},
    ]
    assert (found["rows"], found["before"]) == (4, {"rows": 4, "snapshot": "old"})
    assert found["nulls"] == {"came": 0.0, "shop": 0.0, "x": 0.5}
    assert (found["new"], found["gone"]) == (["came"], ["left"])
    shutil.rmtree(tmp_path / "cache")
    assert drift(rows, storage, of("new"), of("old")) == found, "their profiles stay"  # type: ignore[arg-type]


def test_without_anything_before_it_the_data_are_described_all_the_same(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows = Rows(storage, new=pa.table({"x": [1.0, np.nan]}))
    for before in (None, of("gone")):
        found = drift(rows, storage, of("new"), before)  # type: ignore[arg-type]
        assert (found["nulls"], found["before"], found["distances"]) == ({"x": 0.5}, None, [])


def test_numbers_that_have_no_finite_sum_are_left_out(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows = Rows(storage, old=pa.table({"x": [1e200, -1e200]}), new=pa.table({"x": [1e200, 2e200]}))
    found = drift(rows, storage, of("new"), of("old"))  # type: ignore[arg-type]
    assert all(np.isfinite(moved["distance"]) for moved in found["distances"])
    assert not storage.names("drift")


@pytest.mark.parametrize("method", ["replay", "from_scratch"])
def test_the_card_of_every_version_has_it(small: Callable[..., dict[str, Any]], method: str) -> None:
    settings = small("max_rounds=3", f"method={method}")
    run_loop(settings)
    registry = Registry(open_store(settings), "default")
    versions = registry.versions()
    assert len(versions) == 3
    assert registry.card(versions[0].version).drift["before"] is None
    for before, after in pairwise(versions):
        found = registry.card(after.version).drift
        assert (found["rows"], found["before"]["snapshot"]) == (after.challenger.snapshot.rows, before.snapshot_digest)
        assert {f["feature"] for f in found["distances"]} == {"x", "z", "shop"}
    page = render(review_of(registry, versions[1].version), shared_script=True)
    assert "How far the data moved" in page
    assert "of the rows have another value" in page
    assert "How far the data moved" not in render(review_of(registry, versions[0].version), shared_script=True)
