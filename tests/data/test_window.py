"""Windows cover the time line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise, takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.clock import from_us, parse_duration
from cltrain.data.window import CountWindows, DurationWindows
from cltrain.errors import ConfigError
from cltrain.records import Window

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
START = datetime.fromisoformat("2024-03-05T00:00:00Z")


@dataclass
class Times:
    """A timeline of instants; now is after the last one."""

    times: Sequence[datetime]
    slack: float = 0.0

    def first(self) -> datetime | None:
        return min(self.times, default=None)

    def now(self) -> datetime:
        return max(self.times) + TICK

    def nth_after(self, start: datetime, rows: int) -> datetime | None:
        later = sorted(t for t in self.times if t >= start)
        return later[rows - 1] + TICK if len(later) >= rows else None


def cut(windows: Any, times: Sequence[datetime], slack: float = 0.0) -> list[Window]:
    return list(windows.cut(Times(times, slack), None))


def days(*offsets: float) -> list[datetime]:
    return [START + offset * DAY for offset in offsets]


instants = st.lists(st.integers(-(10**14), 10**14).map(from_us), min_size=1, max_size=40)


@given(instants, st.sampled_from(["1d", "7d", "36h", "400d"]), st.integers(1, 4))
def test_windows_by_duration_leave_no_gap_and_do_not_overlap(times: list[datetime], every: str, bootstrap: int) -> None:
    windows = list(
        takewhile(lambda w: w.index < 50, DurationWindows(every=every, bootstrap=bootstrap).cut(Times(times), None))
    )
    assert [w.index for w in windows] == list(range(len(windows)))
    for a, b in pairwise(windows):
        assert a.end == b.start
        assert b.end - b.start == parse_duration(every)
    if windows:
        assert windows[0].start <= min(times) < windows[0].end
        assert windows[-1].end <= max(times) + TICK
        assert (
            1
            <= len({(t - windows[0].start) // parse_duration(every) for t in times if t < windows[0].end})
            <= bootstrap
        )


@given(st.lists(st.integers(0, 30).map(from_us), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 3))
def test_windows_by_count_hold_enough_and_never_part_an_instant(
    times: list[datetime], rows: int, bootstrap: int
) -> None:
    windows = cut(CountWindows(rows=rows, bootstrap=bootstrap), times)
    for a, b in pairwise(windows):
        assert a.end == b.start
    inside = [[t for t in times if w.start <= t < w.end] for w in windows]
    for w, found in zip(windows, inside, strict=True):
        least = rows * (bootstrap if w.index == 0 else 1)
        assert len(found) >= least
        assert len([t for t in found if t < max(found)]) < least, "the last instant was needed"
    assert sum(map(len, inside)) + len([t for t in times if not windows or t >= windows[-1].end]) == len(times)


@given(instants, st.integers(1, 3))
def test_cutting_goes_on_from_any_window(times: list[datetime], bootstrap: int) -> None:
    windows = DurationWindows(every="400d", bootstrap=bootstrap)
    whole = cut(windows, times)
    for i, window in enumerate(whole):
        assert list(windows.cut(Times(times), window)) == whole[i + 1 :]


def test_windows_begin_at_midnight_and_the_first_is_as_long_as_asked() -> None:
    windows = cut(DurationWindows(every="7d", bootstrap=4), days(*[i + 0.4 for i in range(50)]))
    assert [(w.start, w.end) for w in windows[:2]] == [(days(0)[0], days(28)[0]), (days(28)[0], days(35)[0])]
    assert len(windows) == 4, "the 50th day does not fill an eighth week"


def test_a_short_history_leaves_one_window_to_be_tested_on() -> None:
    assert [w.end for w in cut(DurationWindows(every="1d", bootstrap=4), days(0, 1, 2, 3))] == days(2, 3)
    assert [w.end for w in cut(DurationWindows(every="1d", bootstrap=4), days(0, 0.5, 1))] == days(1)
    assert cut(DurationWindows(every="1d"), days(0, 0.5)) == []


def test_history_that_ends_a_little_early_fills_its_window() -> None:
    times = days(*[i / 24 for i in range(48)])
    assert len(cut(DurationWindows(every="1d", bootstrap=1), times)) == 1
    assert len(cut(DurationWindows(every="1d", bootstrap=1), times, slack=0.05)) == 2


def test_one_event_decades_earlier_joins_the_first_window() -> None:
    windows = cut(DurationWindows(every="7d", bootstrap=4), [from_us(0), *days(*range(70))])
    assert windows[0].start == from_us(0)
    assert timedelta(days=14) <= windows[0].end - START <= timedelta(days=21), "three weeks of now beside it"
    assert len(windows) < 10, "not a thousand empty ones"


def test_a_gap_of_months_gives_empty_windows() -> None:
    windows = cut(DurationWindows(every="7d", bootstrap=1), days(*range(14), *range(100, 115)))
    assert len(windows) == 16
    assert len(cut(CountWindows(rows=7, bootstrap=1), days(*range(14), *range(100, 114)))) == 4


def test_windows_may_begin_where_one_says() -> None:
    windows = cut(DurationWindows(every="7d", bootstrap=1, start="2024-03-10"), days(*range(40)))
    assert windows[0].start == days(5)[0]
    for start in ("2024-03-10T00:00:00+00:00", "2024-03-10T01:00:00+01:00"):
        assert cut(DurationWindows(every="7d", bootstrap=1, start=start), days(*range(40))) == windows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DurationWindows(every="seven"), "'seven' is not a duration"),
        (lambda: DurationWindows(bootstrap=0), "window.bootstrap must be 1 or more windows, not 0"),
        (lambda: DurationWindows(start="soon"), "window.start=soon is not an ISO 8601 date or time"),
        (lambda: CountWindows(rows=0), "window.rows and window.bootstrap must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
