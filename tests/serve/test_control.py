"""What acts on roll-outs, in this process: when it begins to, what it says of itself, and who is told of an ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cltrain.records import to_json
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments, Trial
from serve.control import Control, Note, read_note
from serve.endings import Endings, tell_of, told_epoch
from serve.rollout.controller import Controller, begin, end
from serve.rollout.evidence import Sheet
from serve.rollout.machine import Action
from serve.rollout.releases import Canary

CANARY = Canary(steps=(0.5,), min_samples=1, min_s=0.0)


@pytest.fixture
def trial(registry: Registry) -> Trial:
    registry.promote("1.0", reason="first")
    running = begin(Deployments(registry), CANARY, "1.1", by="test", reason="try it").running
    assert running is not None
    return running


@pytest.fixture
def control() -> Iterator[Callable[..., Control]]:
    opened: list[Control] = []

    def open_control(store: Store, **settings: Any) -> Control:
        opened.append(Control(store=store.to_json(), model="binary", replicas=1, **settings))
        return opened[-1]

    yield open_control
    for one in opened:
        one.close()


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def break_it(registry: Registry, trial: Trial) -> None:
    """A replica says that it cannot load the version."""
    sheet = Sheet(trial.id, -1, "replica", problem="its weights are gone")
    registry.store.storage.write_json(sheet.place, sheet.to_json())


def ended(registry: Registry) -> Trial | None:
    found = Deployments(registry).trials()[-1]
    return found if found.status != "running" else None


def test_who_dies_before_it_has_told_is_followed_by_one_that_does(registry: Registry, trial: Trial) -> None:
    told: list[str] = []
    break_it(registry, trial)

    def die(_: Trial) -> None:
        raise SystemExit("killed")

    controller = Controller(registry, replicas=1, on_end=die)
    with pytest.raises(SystemExit):
        controller.look()
    assert ended(registry)
    for _ in range(2):
        Controller(registry, replicas=1, on_end=lambda one: told.append(one.status)).look()
    assert told == ["rolled_back"], "by the next one, and by nobody after that"
    assert told_epoch(registry.store.storage, "binary") == Deployments(registry).epoch()


def test_each_ending_is_told_once_to_each_who_is_there(registry: Registry, trial: Trial) -> None:
    told: list[str | None] = []
    deployments = Deployments(registry)
    early = Endings(registry, lambda one: told.append(one.roll_out and one.roll_out.reason), kept=False)
    early.look()
    break_it(registry, trial)
    Controller(registry, replicas=1).look()
    late = Endings(registry, lambda one: told.append("late"), kept=False)
    for _ in range(2):
        early.look()
        late.look()
    assert told == ["it cannot be served: its weights are gone"]
    deployments.set_policy({"threshold": 0.4}, by="test", reason="the ended roll-out is in this commit too")
    registry.promote("1.1", reason="by hand")
    begin(deployments, CANARY, "1.0", by="test", reason="another")
    end(deployments, Action("stop", "enough"), by="test")
    early.look()
    assert len(told) == 1, "who ended it by hand knows"


def test_it_waits_for_something_to_act_on_and_then_acts(
    registry: Registry, control: Callable[..., Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("tests.serve.told.write", lambda title, _: told.append(title))
    registry.promote("1.0", reason="first")
    one = control(registry.store, alert="tests.serve.told.write")
    note = until(lambda: read_note(registry.store.storage, "binary"))
    assert (note.replicas, note.error, note.is_stale) == (1, None, False)
    assert one._controller is None
    running = begin(Deployments(registry), CANARY, "1.1", by="test", reason="try it").running
    assert running is not None
    break_it(registry, running)
    assert until(lambda: ended(registry)).status == "rolled_back"
    assert until(lambda: told) == ["binary:1.1 was rolled back"]
    one.check_health()


def test_what_keeps_it_from_acting_is_seen_in_rollouts(
    registry: Registry, trial: Trial, control: Callable[..., Control], serve_store: Callable[..., Any]
) -> None:
    registry.store.storage.write(f"evidence/{trial.id}/-1-broken.json", b"{")
    client = serve_store(registry.store)
    assert client.get("/rollouts").json()["controller"] is None
    control(registry.store)
    found = until(lambda: (c := client.get("/rollouts").json()["controller"]) and c["error"] and c)
    assert (found["alive"], found["replicas"]) == (True, 1)
    assert trial.id in found["error"]
    registry.store.storage.delete(f"evidence/{trial.id}/-1-broken.json")
    until(lambda: client.get("/rollouts").json()["controller"]["error"] is None)
    old = Note(at=datetime.now(UTC) - timedelta(minutes=5), replicas=1)
    assert old.is_stale
    assert to_json(old)["replicas"] == 1


def test_an_alert_that_never_returns_stops_no_guardrail(
    registry: Registry, trial: Trial, control: Callable[..., Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()
    monkeypatch.setattr("serve.control.ALERT_S", 0.05)
    monkeypatch.setattr("tests.serve.told.write", lambda *_: waiting.wait(60))
    break_it(registry, trial)
    one = control(registry.store, alert="tests.serve.told.write")
    until(lambda: ended(registry))
    until(lambda: told_epoch(registry.store.storage, "binary") == Deployments(registry).epoch())
    one.check_health()
    waiting.set()


def test_serve_hears_of_a_thread_that_is_gone(
    registry: Registry, trial: Trial, control: Callable[..., Control]
) -> None:
    one = control(registry.store)
    until(lambda: one._controller)
    one.check_health()
    one._controller.close()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="nothing acts on the roll-outs of binary"):
        one.check_health()


def test_a_store_that_is_away_is_waited_for(
    registry: Registry, trial: Trial, control: Callable[..., Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Deployments) -> int:
        raise ConnectionError("the registry is away")

    with monkeypatch.context() as patch:
        patch.setattr(Deployments, "epoch", gone)
        one = control(registry.store)
        until(lambda: one._error)
    break_it(registry, trial)
    until(lambda: ended(registry), 15)


def test_tell_of_says_nothing_of_what_went_well(trial: Trial) -> None:
    told: list[str] = []
    tell_of(trial, "binary", [lambda title, _: told.append(title)])
    assert told == []
