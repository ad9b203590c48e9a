"""Held-out rows are a fixed share of all ids."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cltrain.data.holdout import is_held_out


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("form", ["{}", "user-{:09d}", "2013.parquet#{}"])
def test_the_share_is_the_one_asked_for_whatever_ids_look_like(share: float, form: str) -> None:
    ids = pa.array([form.format(i) for i in range(40_000)])
    assert abs(is_held_out(ids, share).mean() - share) < 4 * (share * (1 - share) / 40_000) ** 0.5


def test_a_larger_share_holds_out_what_a_smaller_one_does_and_order_plays_no_part() -> None:
    ids = pa.array([f"e{i}" for i in range(1000)])
    small, large = is_held_out(ids, 0.1), is_held_out(ids, 0.3)
    assert not (small & ~large).any()
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(is_held_out(ids.take(pa.array(order)), 0.1), small[order])
