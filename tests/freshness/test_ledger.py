"""Batches of trials: their order, what is on file, and what fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltrain.freshness import ledger as ledger_module
from cltrain.freshness.ledger import BATCH_S, Ledger, TrialFiles, run_batch, with_keys
from cltrain.storage import Storage

WORK: dict[str, Any] = {"settings": {}, "seed": 1, "eval_rows": 10, "slices": None, "holdout_share": 0.1}


def trials(chain: int = 4, others: int = 6) -> list[dict[str, Any]]:
    links = [{"mode": "stateful", "boundary": b, "seed": 0, "parent": b - 1 if b else None} for b in range(chain)]
    free = [{"mode": "stateless", "boundary": b, "seed": 0, "parent": None} for b in range(others)]
    return with_keys([t | {"trial": i, "role": "curve"} for i, t in enumerate([*links, *free])], WORK)


def given(error: str | None = None, seconds: float = 10.0) -> dict[str, Any]:
    return {"cells": {}, "rows": 1, "seconds": seconds, "error": error}


def finish(ledger: Ledger, batch: dict[str, Any], error: str | None = None) -> None:
    ledger.end(batch["trial"], {"results": [given(error) for _ in batch["trials"]]})


def test_keys_name_all_that_a_trial_depends_on() -> None:
    found = trials()
    assert len({t["key"] for t in found}) == len(found)
    assert found[1]["parent"] == found[0]["key"]
    assert trials() == found
    other = with_keys(
        [{k: v for k, v in t.items() if k != "key"} | {"parent": None} for t in found], WORK | {"seed": 2}
    )
    assert not {t["key"] for t in other} & {t["key"] for t in found}
    renumbered = with_keys(
        [{"trial": 99, "mode": "stateless", "boundary": 0, "seed": 0, "parent": None, "role": "curve"}], WORK
    )
    assert renumbered[0]["key"] == found[4]["key"], "its number is not among it"


def test_a_link_waits_for_the_one_before_it_and_others_do_not() -> None:
    ledger = Ledger(trials=trials())
    first, second = ledger.begin(), ledger.begin()
    assert first is not None
    assert second is not None
    assert [t["trial"] for t in first["trials"]] == [0]
    assert [t["trial"] for t in second["trials"]] == [4], "the next link waits"
    finish(ledger, first)
    third = ledger.begin()
    assert third is not None
    assert [t["trial"] for t in third["trials"]][:1] == [1]


def test_batches_grow_to_their_time_and_hold_chains_in_order() -> None:
    ledger = Ledger(trials=trials(chain=40, others=0))
    first = ledger.begin()
    assert first is not None
    finish(ledger, first)
    assert ledger.begin() is not None
    ledger = Ledger(trials=trials(chain=100, others=0), known={0: given(seconds=BATCH_S / 6)}, ready=lambda key: True)
    batch = ledger.begin()
    assert batch is not None
    assert [t["trial"] for t in batch["trials"]] == [1, 2, 3, 4, 5, 6]
    assert ledger.begin() is None, "the rest of the chain waits"
    assert not ledger.over


def test_what_is_on_file_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def run(work: Any, trial: Any) -> dict[str, Any]:
        ran.append(trial["trial"])
        return given("bad" if trial["trial"] == 5 else None)

    monkeypatch.setattr(ledger_module, "run_trial", run)
    work, found = WORK | {"root": str(tmp_path)}, trials(chain=0)
    for _ in range(2):
        results = run_batch(work, {"trials": found})["results"]
    assert ran == [0, 1, 2, 3, 4, 5, 5], "but one that failed is"
    assert [r["error"] for r in results] == [None] * 5 + ["bad"]
    known = TrialFiles(Storage(tmp_path)).known(found)
    assert sorted(known) == [0, 1, 2, 3, 4]
    resumed = Ledger(trials=found, known=known)
    last = resumed.begin()
    assert last is not None
    assert [t["trial"] for t in last["trials"]] == [5]


@pytest.mark.parametrize(("ready", "left"), [(True, [2, 3]), (False, [0, 1, 2, 3])])
def test_a_chain_goes_on_where_its_state_is(ready: bool, left: list[int]) -> None:
    ledger = Ledger(trials=trials(others=0), known={0: given(), 1: given()}, ready=lambda key: ready)
    assert [t["trial"] for t in ledger.waiting] == left
    whole = Ledger(trials=trials(others=0), known={i: given() for i in range(4)})
    assert whole.over, "nobody needs the states of a chain that is complete"


def test_what_follows_a_failure_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(trials=trials())
    first = ledger.begin()
    assert first is not None
    finish(ledger, first, "the loss is not finite")
    assert sorted(ledger.failed) == [0, 1, 2, 3]
    while (batch := ledger.begin()) is not None:
        finish(ledger, batch)
    assert ledger.over
    assert not ledger.interrupted
    assert sorted(ledger.results) == [4, 5, 6, 7, 8, 9]
    monkeypatch.setattr(ledger_module, "run_trial", lambda work, trial: given("bad"))
    errors = [r["error"] for r in run_batch(WORK | {"root": str(tmp_path)}, {"trials": trials(others=0)})["results"]]
    assert errors == ["bad", *["the link before it failed"] * 3]


def test_a_batch_that_is_lost_is_a_failure() -> None:
    ledger = Ledger(trials=trials(chain=0, others=1))
    assert ledger.begin() is not None
    assert ledger.interrupted
    ledger.end(0, None)
    assert ledger.failed == {0: "its process was lost"}


def test_it_stops_when_there_is_enough() -> None:
    enough: Callable[[Any], bool] = lambda results: len(results) >= 3  # noqa: E731
    ledger = Ledger(trials=trials(chain=0), enough=enough)
    while (batch := ledger.begin()) is not None:
        finish(ledger, batch)
    assert 3 <= len(ledger.results) < 6
    assert ledger.stopped
    assert not ledger.interrupted


def test_the_time_left_is_that_of_the_work_left() -> None:
    now = iter([0.0, 10.0, 10.0, 20.0, 20.0])
    ledger = Ledger(trials=trials(chain=0, others=4), planned=lambda t: 2.0, clock=lambda: next(now))
    batches = [ledger.begin() for _ in range(2)]
    assert ledger.seconds_left is None
    for batch in batches:
        assert batch is not None
        finish(ledger, batch)
    assert ledger.seconds_left == pytest.approx(20.0)
