"""Categories come and go; those that stay keep their index."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.data.vocabulary import FIRST, CategoricalColumn, fit_categories
from cltrain.storage import canonical_json


def column(*values: str | None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def fitted(*values: str, room: int = 3) -> CategoricalColumn:
    return fit_categories("k", column(*values), room)


def test_more_categories_than_fit_keep_the_frequent_ones(caplog: pytest.LogCaptureFixture) -> None:
    assert fitted("rare", "b", "b", "a", "a", "a", room=2).categories == ("a", "b")
    assert "k: 1 categories more than the 2 that fit" in caplog.text


def test_a_new_category_takes_the_place_of_the_one_not_met_for_longest() -> None:
    first = fitted("a", "a", "b", "c")
    second = first.extended(column("b", "c"))
    assert (second.categories, second.met) == (("a", "b", "c"), (0, 1, 1))
    third = second.extended(column("c", "new", None))
    assert (third.categories, third.met) == (("new", "b", "c"), (2, 1, 2))
    assert third.reused(second) == (FIRST,)
    assert third.extended(column("x", "y", "y", "c")).categories == ("x", "y", "c")


def test_what_is_met_now_never_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    full = fitted("a", "b", "c")
    after = full.extended(column("a", "b", "c", "x"))
    assert after.categories == full.categories
    assert after.reused(full) == ()
    assert "k: 1 categories more than the 3 that fit; the rare ones count as unknown" in caplog.text


def test_of_those_not_met_for_equally_long_the_rarest_goes_first() -> None:
    assert fitted("a", "a", "a", "b", "b", "c").extended(column("x")).categories == ("a", "b", "x")


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=6), min_size=1, max_size=12))
def test_memory_is_bounded_and_survivors_keep_their_index(parts: list[list[str]]) -> None:
    now = fitted(*parts[0], room=4)
    for part in parts:
        before, now = now, now.extended(column(*part))
        assert len(now.categories) == len(set(now.categories)) == len(now.met) <= 4
        stay = set(before.categories) & set(now.categories)
        assert all(before.places[value] == now.places[value] for value in stay)
        assert set(part) & set(before.categories) <= stay
        moved = {i for i, value in enumerate(before.categories, FIRST) if now.categories[i - FIRST] != value}
        assert set(now.reused(before)) == moved


def test_one_of_an_older_version_has_never_met_anything() -> None:
    old = CategoricalColumn(name="k", categories=["a", "b"])  # type: ignore[arg-type]
    assert (old.met, old.max_categories) == ((0, 0), 20_000)
    again = CategoricalColumn(**json.loads(canonical_json(vars(old))))
    assert again == old
