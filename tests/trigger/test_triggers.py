"""Triggers: truth tables, and pure functions of their evidence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.errors import ConfigError
from cltrain.trigger import All, Any, AtLeast, Evidence, Manual, Time, Trigger, Volume

START = datetime(2024, 1, 1, tzinfo=UTC)


def evidence(hours: float = 0.0, fresh: int = 0, trained: int = 1_000) -> Evidence:
    return Evidence(now=START + timedelta(hours=hours), last_update=START, fresh_rows=fresh, trained_rows=trained)


EVIDENCE = st.builds(evidence, st.floats(0, 1e5), st.integers(0, 10**7), st.integers(0, 10**7))
LEAVES: list[Trigger] = [
    Time(), Time(every="24h"), Time(every="7d"), Volume(rows=500), Volume(growth=0.05), Manual(),
]  # fmt: skip


def nested(inner: st.SearchStrategy[Trigger]) -> st.SearchStrategy[Trigger]:
    parts = st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
    counted = parts.flatmap(lambda p: st.builds(AtLeast, parts=st.just(p), count=st.integers(1, len(p))))
    return st.builds(Any, parts=parts) | st.builds(All, parts=parts) | counted


TRIGGERS = st.recursive(st.sampled_from(LEAVES), nested, max_leaves=6)


@given(TRIGGERS, EVIDENCE)
def test_a_decision_is_a_pure_function_of_the_evidence(trigger: Trigger, seen: Evidence) -> None:
    first = trigger.decide(seen)
    trigger.decide(evidence(1e4, 10**6, 1))
    assert trigger.decide(seen) == first
    assert first.reason


@given(TRIGGERS, EVIDENCE, st.integers(0, 10**6), st.floats(0, 1e4))
def test_more_time_and_more_rows_never_take_a_decision_back(
    trigger: Trigger, seen: Evidence, rows: int, hours: float
) -> None:
    later = Evidence(
        now=seen.now + timedelta(hours=hours), last_update=seen.last_update,
        fresh_rows=seen.fresh_rows + rows, trained_rows=seen.trained_rows,
    )  # fmt: skip
    assert trigger.decide(later).fire >= trigger.decide(seen).fire


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(1, 2_000))
def test_volume_fires_at_the_first_crossing_and_never_before(arrivals: list[int], needed: int) -> None:
    fresh = 0
    for arrived in arrivals:
        fresh += arrived
        assert Volume(rows=needed).decide(evidence(fresh=fresh)).fire == (fresh >= needed)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([0.01, 0.05, 0.1, 1.0]))
def test_growth_is_a_share_of_what_was_trained_on(fresh: int, trained: int, growth: float) -> None:
    fire = Volume(growth=growth).decide(evidence(fresh=fresh, trained=trained)).fire
    assert fire == (fresh >= max(1, growth * trained))


@pytest.mark.parametrize(("hours", "fire"), [(0.0, False), (23.99, False), (24.0, True), (100.0, True)])
def test_time(hours: float, fire: bool) -> None:
    assert Time(every="1d").decide(evidence(hours)).fire is fire
    assert Time().decide(evidence(hours)).fire
    assert not Manual().decide(evidence(hours)).fire


@pytest.mark.parametrize(("late", "many"), list(product([False, True], repeat=2)))
def test_truth_tables(late: bool, many: bool) -> None:
    parts: dict[str, Trigger] = {"time": Time(every="1d"), "volume": Volume(rows=10)}
    seen = evidence(48.0 if late else 1.0, 20 if many else 1)
    assert Any(parts=parts).decide(seen).fire == (late or many)
    assert All(parts=parts).decide(seen).fire == (late and many)
    assert AtLeast(parts=parts, count=2).decide(seen).fire == (late and many)
    decision = AtLeast(parts=parts, count=1).decide(seen)
    assert decision.fire == (late or many)
    assert decision.evidence["volume"]["fire"] == many
    assert "time: " in decision.reason
    assert "; volume: " in decision.reason


def test_ranges() -> None:
    for make, message in (
        (lambda: Volume(), r"trigger\.rows=N or trigger\.growth"),
        (lambda: Volume(rows=1, growth=0.1), "one of them"),
        (lambda: Volume(rows=0), r"trigger\.rows must be above 0, not 0"),
        (lambda: Volume(growth=-0.1), r"trigger\.growth must be above 0, not -0\.1"),
        (lambda: Time(every="often"), r"trigger\.every: 'often' is not a duration"),
        (lambda: Any(parts={}), r"trigger\.parts is empty"),
        (lambda: AtLeast(parts={"a": Time()}, count=2), r"trigger\.count must be between 1 and the 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
