"""Durations and instants."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.clock import DataTime, WallClock, from_us, parse_duration, to_us
from cltrain.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7d", 604800),
        ("2w", 1209600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("90min", 5400),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("30s", 30),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-7d", "7 days", "7D", "1d7", "1 0d x", "0d", "0.0000001s", "1e3s", "9999999999d"]
)
def test_what_is_no_duration_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"duration"):
        parse_duration(text)


@given(st.integers(-(10**15) * 60, 10**17))
def test_instants_are_exact_to_the_microsecond(us: int) -> None:
    assert to_us(from_us(us)) == us


def test_instants_of_any_zone_are_the_same() -> None:
    assert from_us(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert to_us(datetime.fromisoformat("1970-01-01T01:00:00+01:00")) == 0
    assert to_us(datetime.fromisoformat("1969-12-31T23:59:59.999999Z")) == -1


def test_the_clock_of_the_data_ends_with_it_and_the_one_on_the_wall_does_not() -> None:
    end = from_us(10)
    assert DataTime().now(end) == end
    assert not DataTime().wait()
    assert abs(WallClock(poll_s=0.001).now(end) - datetime.now(UTC)) < timedelta(minutes=1)
    assert WallClock(poll_s=0.001).wait()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"clock.poll_s must be above 0 seconds, not 0"):
        WallClock(poll_s=0)
    with pytest.raises(ConfigError, match=r"clock.slack must be a share of a window between 0 and 1, not 1"):
        DataTime(slack=1)
