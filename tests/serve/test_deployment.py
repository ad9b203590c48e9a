"""The desired state: who may change it, what moves with it, and what a store without one has."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.registry import Registry
from cltrain.registry.deployment import Deployment, Deployments, Trial

NOW = datetime(2024, 1, 1, tzinfo=UTC)
SPLIT = Deployment(
    roles={"champion": "1.0", "challenger": "1.1"}, shares={"champion": 0.9, "challenger": 0.1}, salt="s"
)


def trial(status: str = "running") -> Trial:
    return Trial(
        id="t",
        kind="canary",
        settings={},
        version="1.1",
        champion="1.0",
        started_at=NOW,
        since=NOW,
        status=status,  # type: ignore[arg-type]
        reason="because",
    )


@pytest.fixture
def deployments(registry: Registry) -> Deployments:
    registry.promote("1.0", reason="first")
    return Deployments(registry)


def test_a_store_without_one_has_what_its_aliases_say(registry: Registry) -> None:
    deployments = Deployments(registry)
    assert (deployments.epoch(), deployments.current()) == (0, Deployment(roles={}, shares={}))
    registry.promote("1.0", reason="first")
    registry.promote("1.1", reason="better")
    now = deployments.current()
    assert (now.roles, now.shares, now.epoch) == ({"champion": "1.1", "previous": "1.0"}, {"champion": 1.0}, 2)


def test_a_commit_needs_the_epoch_and_is_history(deployments: Deployments, registry: Registry) -> None:
    done = deployments.commit(SPLIT, expected_epoch=1, by="me", reason="try")
    assert (done.epoch, deployments.epoch(), deployments.current()) == (2, 2, done)
    with pytest.raises(ConflictError, match="epoch 2, not 1"):
        deployments.commit(SPLIT, expected_epoch=1, by="me", reason="try")
    assert [one.by for one in deployments.history()] == ["me"]
    assert registry.champion().version == "1.0"  # type: ignore[union-attr]
    registry.promote("1.1", reason="by hand")
    now = deployments.current()
    assert (now.epoch, now.roles, now.shares) == (3, {"champion": "1.1", "previous": "1.0"}, {"champion": 1.0})
    assert registry.rollback(reason="no")[1] == deployments.epoch() == 4


def test_aliases_move_with_the_champion_in_the_same_commit(deployments: Deployments, registry: Registry) -> None:
    new = Deployment(roles={"champion": "1.1"}, shares={"champion": 1.0})
    done = deployments.commit(new, expected_epoch=1, by="me", reason="better")
    assert done.roles == {"champion": "1.1", "previous": "1.0"}
    assert (registry.champion().version, registry.version("previous").version) == ("1.1", "1.0")  # type: ignore[union-attr]
    assert {move["epoch"] for move in registry.moves()[-2:]} == {2}
    assert deployments.current() == done


def test_a_version_that_was_rolled_back_is_tagged_until_somebody_promotes_it(
    deployments: Deployments, registry: Registry
) -> None:
    running = deployments.commit(
        Deployment(roles=SPLIT.roles, shares=SPLIT.shares, roll_out=trial()), expected_epoch=1, reason="try"
    )
    assert running.running == trial()
    assert deployments.refused("1.1") is None
    ended = Deployment(roles={"champion": "1.0"}, shares={"champion": 1.0}, roll_out=trial("rolled_back"))
    deployments.commit(ended, expected_epoch=2, reason="errors")
    assert (deployments.refused("1.1"), registry.version("1.1").stage) == ("errors", "withdrawn")
    assert [t.status for t in deployments.trials()] == ["rolled_back"]
    registry.promote("1.1", reason="I know better")
    assert deployments.refused("1.1") is None


def test_nothing_is_committed_that_cannot_be(deployments: Deployments) -> None:
    with pytest.raises(StoreError, match=r"no version 9\.9 to be champion"):
        deployments.commit(
            Deployment(roles={"champion": "9.9"}, shares={"champion": 1.0}), expected_epoch=1, reason="?"
        )
    with pytest.raises(ConfigError, match="add up to 1"):
        Deployment(roles=SPLIT.roles, shares={"champion": 0.5})
    with pytest.raises(ConfigError, match=r"shares\.challenger is no role"):
        Deployment(roles={"champion": "1.0"}, shares=SPLIT.shares)
    assert deployments.epoch() == 1
