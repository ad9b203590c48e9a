"""What serves, what wants to, and what did when."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from cltrain.errors import ConflictError, StoreError
from cltrain.registry import Registry, Store

Register = Callable[..., object]


def test_several_challengers_have_names_of_their_own(registry: Registry, register: Register) -> None:
    for _ in range(4):
        register(registry)
    registry.promote("1.0", reason="first")
    assert [registry.challenge(v) for v in ("2.0", "3.0", "2.0", "4.0")] == [
        "challenger",
        "challenger-2",
        "challenger",
        "challenger-3",
    ]
    assert [v.version for v in registry.challengers()] == ["2.0", "3.0", "4.0"]
    registry.withdraw("2.0", reason="slower")
    registry.withdraw("2.0", reason="again changes nothing")
    assert registry.challenge("1.0") == "challenger", "the lowest that is free"
    registry.withdraw("1.0", reason="it is champion")
    assert registry.epoch() == 1, "what serves has not changed"
    assert registry.promote("challenger-3", reason="better") == 2
    assert registry.version("champion").aliases == ("champion",), "a champion is no challenger"
    assert [v.version for v in registry.challengers()] == ["3.0"]
    moves = [(m["alias"], m["old"], m["new"], m["epoch"]) for m in registry.moves()][-3:]
    assert moves == [("previous", None, "1.0", 2), ("champion", "1.0", "4.0", 2), ("challenger-3", "4.0", None, 2)]


def test_any_other_alias_moves_only_from_where_it_was_seen(local: Registry, register: Register) -> None:
    register(local)
    register(local)
    local.move("golden", "1.0", reason="audited", expected=None)
    assert local.version("golden").version == "1.0"
    with pytest.raises(ConflictError, match=r"golden of ranker is 1\.0, not None: somebody else moved it"):
        local.move("golden", "2.0", reason="audited", expected=None)
    local.move("golden", "2.0", reason="audited", expected="1.0")
    local.move("golden", None, reason="no longer")
    with pytest.raises(StoreError, match="has no version 'golden'"):
        local.version("golden")
    with pytest.raises(StoreError, match="moves by promote and rollback alone"):
        local.move("champion", "1.0", reason="x")
    with pytest.raises(StoreError, match="an alias is of small letters"):
        local.move("1.0", "2.0", reason="x")
    assert [(m["old"], m["new"]) for m in local.moves()] == [(None, "1.0"), ("1.0", "2.0"), ("2.0", None)]


def test_the_champion_of_any_instant_is_known_even_of_versions_that_are_gone(
    registry: Registry, register: Register
) -> None:
    for _ in range(3):
        register(registry)
    draw, truth = random.Random(0), []
    before = datetime.now(UTC)
    assert registry.champion_at(before) is None
    for _ in range(12):
        version = draw.choice(["1.0", "2.0", "3.0"])
        registry.promote(version, reason="drawn")
        truth.append((datetime.now(UTC), version))
    with registry.store.writing() as session:
        session.execute(text("DELETE FROM versions WHERE version = '2.0'"))
    assert [registry.champion_at(instant) for instant, _ in truth] == [version for _, version in truth]
    assert registry.champion_at(before - timedelta(days=1)) is None
    served = registry.served()
    assert [s["version"] for s in served] == [v for v, _ in itertools.groupby(v for _, v in truth)]
    assert all(one["end"] == other["start"] for one, other in itertools.pairwise(served))
    assert served[-1]["end"] is None
    assert {s["version"] for s in registry.served("3.0")} == {"3.0"}


def test_after_a_rollback_the_line_goes_on_from_the_restored_version(registry: Registry, register: Register) -> None:
    register(registry)
    register(registry, "1.0")
    registry.promote("1.0", reason="first")
    registry.promote("1.1", reason="better")
    assert registry.rollback(by="guard", reason="errors doubled", automatic=True) == ("1.0", 3)
    champion = registry.champion()
    assert champion is not None
    register(registry, champion.version)
    assert registry.version("1.2").parent == "1.0"
    assert [v.version for v in registry.descendants("1.0")] == ["1.1", "1.2"], "the branch that was left stays"
    left = registry.version("1.1")
    assert (left.tags, left.stage) == ({"rolled_back": "errors doubled"}, "withdrawn")
    registry.promote("1.1", by="ann", reason="it was the sensor")
    again = registry.version("1.1")
    assert (again.tags, again.stage) == ({}, "validated"), "somebody decided otherwise"


def test_an_automatic_rollback_never_goes_to_what_was_rolled_back(local: Registry, register: Register) -> None:
    for _ in range(3):
        register(local)
        local.promote(f"{_ + 1}.0", reason="better")
    assert local.rollback(reason="worse", automatic=True)[0] == "2.0"
    assert local.rollback(reason="worse still", automatic=True)[0] == "1.0", "3.0 is `previous`, but is bad"
    with pytest.raises(StoreError, match="no previous champion to go back to that was not rolled back itself"):
        local.rollback(reason="all are bad", automatic=True)
    assert local.rollback(by="ann", reason="the least bad")[0] == "2.0", "a person may"


def _race(root: str, url: str | None, name: str, versions: tuple[str, str], moves: int) -> None:
    """Make one of the two versions champion, so often, each time from where the champion was seen."""
    registry = Registry(Store(root=root, url=url), "ranker")
    while moves:
        now = registry.version("champion").version
        other = versions[now == versions[0]]
        try:
            registry.promote(other, by=name, reason="drawn", expected=now)
        except ConflictError:
            continue
        moves -= 1


def test_two_processes_that_race_for_the_champion_lose_no_move(registry: Registry, register: Register) -> None:
    moves = 75 if registry.store.url is None else 30  # `benchmarks/run.py registry` has a thousand
    for _ in range(4):
        register(registry)
    registry.promote("1.0", by="first", reason="first")
    context = multiprocessing.get_context("spawn")
    where = registry.store.root, registry.store.url
    sides = (("ann", ("1.0", "2.0")), ("bob", ("3.0", "4.0")))
    racers = [context.Process(target=_race, args=(*where, *side, moves)) for side in sides]
    for racer in racers:
        racer.start()
    seen, champions = threading.Event(), set()

    def read() -> None:
        while not seen.is_set():
            holders = [v.version for v in registry.versions() if "champion" in v.aliases]
            champions.add(len(holders))
            time.sleep(0.05)

    reader = threading.Thread(target=read)
    reader.start()
    for racer in racers:
        racer.join()
    seen.set()
    reader.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert champions == {1}, "a reader never sees none or two"
    crowned = [m for m in registry.moves() if m["alias"] == "champion"]
    assert [m["epoch"] for m in crowned] == list(range(1, 2 * moves + 2)), "no epoch twice, none left out"
    assert all(before["new"] == after["old"] for before, after in itertools.pairwise(crowned))
    assert [sum(m["by"] == name for m in crowned) for name in ("ann", "bob")] == [moves, moves]
    assert registry.version("champion").version == crowned[-1]["new"]
    assert registry.verify_audit().intact
