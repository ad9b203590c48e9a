"""What the clients of the live case keep on record of labels, against which versions are held."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.live import Asked, Live, unit_of
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME, Window

AT = datetime(2013, 3, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)


def live(tmp_path: Path, **options: float) -> Live:
    given = {"late": 0.0, "lost": 0.0, "twice": 0.0, "poison": 0, **options}
    return Live("canary", 0, tmp_path, argparse.Namespace(**given))


def asked(number: int, label: int | None = 1) -> Asked:
    landed = AT + (number + 2) * HOUR if label is not None else None
    row = {EVENT_ID: f"UA-{number}-EWR-x", EVENT_TIME: AT + number * HOUR, LABEL: label, LABEL_TIME: landed}
    return Asked(row, 1, request_id=f"q{number}")


def test_labels_come_as_asked_for(tmp_path: Path) -> None:
    case = live(tmp_path, twice=1.0)
    case._plan(asked(0))
    case._plan(asked(1, label=None))
    assert [(one.at, one.label["label"]) for one in case.due] == [(AT + 2 * HOUR, 1), (AT + 26 * HOUR, 1)]
    assert (case.sent["twice"], case.sent["none"]) == (1, 1)
    late = live(tmp_path, late=1.0)
    late._plan(asked(0))
    assert timedelta(days=1) <= late.due[0].at - (AT + 2 * HOUR) <= timedelta(days=10)
    assert late.due[0].label["label_time"] == late.due[0].at.isoformat()
    lost = live(tmp_path, lost=1.0)
    lost._plan(asked(0))
    assert (lost.due, lost.sent["lost"]) == ([], 1)
    poisoned = live(tmp_path, poison=1)
    poisoned._plan(asked(0))
    assert poisoned.due[0].label["label"] == 0


def test_what_was_known_in_time(tmp_path: Path) -> None:
    case = live(tmp_path)
    for number in range(6):
        one = asked(number)
        one.label_time, one.acked = one.row[LABEL_TIME], float(number)
        case.asked.append(one)
    case.asked[0].acked = case.asked[0].label_time = None  # lost
    assert case._known(AT + 6 * HOUR, 10.0) == {"q1", "q2", "q3"}
    assert case._known(AT + 6 * HOUR, 3.0) == {"q1", "q2"}
    broken = Window(index=3, start=AT, end=AT + 2 * HOUR)
    assert case._known(AT + 6 * HOUR, 10.0, [broken]) == {"q2", "q3"}


def test_a_unit_is_a_flight_number() -> None:
    assert unit_of("UA-1545-EWR-20130101T1015") == "UA-1545"
