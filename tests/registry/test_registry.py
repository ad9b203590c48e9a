"""Versions, aliases and rounds, on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from cltrain.errors import ConflictError, StoreError
from cltrain.records import Decision, Kind
from cltrain.registry import Registry, RoundLog, Store, VersionRecord
from cltrain.registry.registry import models
from tests.versions import registered


def register(registry: Registry, round_index: int, kind: Kind, parent: str | None = None) -> VersionRecord:
    return registered(registry, round_index, parent, kind=kind, state=f"states/{round_index}-{kind}")


def test_stateless_starts_a_major_and_stateful_adds_a_minor(registry: Registry) -> None:
    names = [register(registry, 0, "stateless").version, register(registry, 1, "stateful", "1.0").version]
    names += [register(registry, 2, "stateless").version, register(registry, 3, "stateful", "2.0").version]
    assert names == ["1.0", "1.1", "2.0", "2.1"]
    assert [v.version for v in registry.lineage("2.1")] == ["2.1", "2.0"]


def test_two_children_of_one_version_get_distinct_numbers(registry: Registry) -> None:
    register(registry, 0, "stateless")
    register(registry, 1, "stateful", "1.0")
    assert register(registry, 2, "stateful", "1.1").version == "1.2"
    assert register(registry, 3, "stateful", "1.1").version == "1.3"
    assert [v.version for v in registry.lineage("1.3")] == ["1.3", "1.1", "1.0"]


def test_registering_a_round_again_gives_the_version_it_got(registry: Registry) -> None:
    register(registry, 0, "stateless")
    assert register(registry, 0, "stateless").version == "1.0"
    assert [v.version for v in registry.versions()] == ["1.0"]


def test_promotion_moves_champion_and_previous_together_and_is_recorded(registry: Registry) -> None:
    register(registry, 0, "stateless")
    register(registry, 1, "stateful", "1.0")
    assert registry.champion() is None
    assert registry.epoch() == 0
    assert registry.promote("1.0", by="ann", reason="first") == 1
    assert registry.promote("1.1", by="ann", reason="better") == 2
    assert registry.promote("1.1", by="ann", reason="again") == 2, "promoting the champion changes nothing"
    champion = registry.champion()
    assert champion is not None
    assert champion.aliases == ("champion",)
    assert registry.version("previous").version == "1.0"
    moves = [(m["alias"], m["old"], m["new"], m["epoch"], m["by"]) for m in registry.moves()]
    assert moves == [
        ("champion", None, "1.0", 1, "ann"),
        ("previous", None, "1.0", 2, "ann"),
        ("champion", "1.0", "1.1", 2, "ann"),
    ]
    assert registry.rollback(reason="rollback: worse") == ("1.0", 3)


def test_promotion_refuses_when_somebody_else_was_first(registry: Registry) -> None:
    for round_index, kind in enumerate(("stateless", "stateless", "stateless")):
        register(registry, round_index, kind)  # type: ignore[arg-type]
    registry.promote("1.0", reason="first")
    registry.promote("2.0", reason="them", expected="1.0")
    with pytest.raises(ConflictError, match=r"champion of ranker is 2\.0, not 1\.0"):
        registry.promote("3.0", reason="us", expected="1.0")


def test_unknown_names_are_answered_with_the_known_ones(registry: Registry) -> None:
    register(registry, 0, "stateless")
    with pytest.raises(StoreError, match=r"no version '7\.7'; it has: 1\.0"):
        registry.version("7.7")
    assert registry.version("ranker:1.0").version == "1.0"
    with pytest.raises(StoreError, match="no previous champion"):
        registry.rollback(reason="x")


def test_models_of_one_store_are_apart(registry: Registry) -> None:
    other = Registry(registry.store, "embedding")
    register(registry, 0, "stateless")
    register(other, 0, "stateless")
    registry.promote("1.0", reason="x")
    assert other.champion() is None
    assert models(registry.store) == ["embedding", "ranker"]


def test_a_stage_runs_once_and_its_record_is_read_back(registry: Registry) -> None:
    rounds = RoundLog(registry.store, "ranker")
    calls = []

    def decide() -> Decision:
        calls.append(1)
        return Decision(fire=True, reason="now", evidence={"rows": 3})

    first = rounds.once(4, "decide", Decision, decide)
    again = RoundLog(Store(root=registry.store.root, url=registry.store.url), "ranker").once(
        4, "decide", Decision, decide
    )
    assert first == again == Decision(fire=True, reason="now", evidence={"rows": 3})
    assert calls == [1]


def test_a_stage_that_fails_leaves_no_record(registry: Registry) -> None:
    rounds = RoundLog(registry.store, "ranker")
    with pytest.raises(ZeroDivisionError):
        rounds.once(0, "decide", Decision, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert rounds.once(0, "decide", Decision, lambda: Decision(fire=False, reason="later")).reason == "later"


def test_rounds_by_hand_count_down_and_an_unfinished_one_is_taken_up(registry: Registry) -> None:
    rounds = RoundLog(registry.store, "ranker")
    assert rounds.by_hand({"kind": "stateless"}) == -1
    assert rounds.by_hand({"kind": "stateless"}) == -1
    assert rounds.by_hand({"kind": "stateful"}) == -2, "another wish is another round"
    rounds.once(-2, "done", Decision, lambda: Decision(fire=True, reason="done"))
    assert rounds.by_hand({"kind": "stateful"}) == -3
    assert rounds.finished() == []


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match=r"not writable.*pass store\.root=FOLDER"):
        _ = Store(root=str(blocked / "store")).engine


def test_a_remote_root_needs_a_database_url() -> None:
    from cltrain.errors import ConfigError

    with pytest.raises(ConfigError, match=r"store\.url=postgresql"):
        _ = Store(root="s3://bucket/prefix").engine
