from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from cltrain.errors import ConfigError
from cltrain.online.simulator import Feedback, InFlight, World


def test_a_world_is_the_same_under_its_seed() -> None:
    one, same, other = World(users=50), World(users=50), World(users=50, seed=1)
    assert (one.logits == same.logits).all()
    assert (one.ranking("v", 0.5) == same.ranking("v", 0.5)).all()
    assert (one.logits != other.logits).any()
    clicks = [w.clicks(np.arange(50), w.ranking("v", 0.0), np.random.default_rng(0)) for w in (one, same)]
    assert (clicks[0] == clicks[1]).all()


def test_better_rankers_get_more_clicks_and_users_look_from_the_top() -> None:
    world, generator = World(users=4_000), np.random.default_rng(0)
    found = [world.clicks(np.arange(4_000), world.ranking("v", noise), generator) for noise in (0.0, 1.0, 5.0)]
    assert found[0].any(1).mean() > found[1].any(1).mean() > found[2].any(1).mean()
    places = found[1].mean(0)
    assert places[0] > places[4] > places[9]


def test_users_who_are_satisfied_leave() -> None:
    world = World(users=500, satisfaction=1.0)
    assert world.clicks(np.arange(500), world.ranking("v", 0.0), np.random.default_rng(0)).sum(1).max() == 1


def test_users_who_look_by_position_go_on_after_a_click() -> None:
    world, generator = World(users=3_000, taste=0.0, activity=0.0, looks="position"), np.random.default_rng(0)
    clicks = world.clicks(np.arange(3_000), world.ranking("v", 0.0), generator)
    np.testing.assert_allclose(clicks.mean(0), special.expit(-2.0) / np.arange(1, 11), atol=0.02)
    assert clicks[clicks[:, 0]][:, 1:].any(1).mean() == pytest.approx(clicks[:, 1:].any(1).mean(), abs=0.06)


def test_feedback_is_late_or_lost() -> None:
    generator, feedback = np.random.default_rng(0), Feedback(delay_s=10, lost=0.3)
    arrivals = [feedback.arrival(1_000, generator) for _ in range(4_000)]
    came = np.array([a for a in arrivals if a is not None])
    assert 1 - len(came) / 4_000 == pytest.approx(0.3, abs=0.03)
    assert (came - 1_000).mean() == pytest.approx(10e6, rel=0.06)


def test_labels_arrive_once_in_order() -> None:
    way = InFlight()
    for arrival, label in ((30, "c"), (10, "a"), (None, "lost"), (10, "b")):
        way.send(arrival, label)
    assert way.arrived(5) == []
    assert way.arrived(20) == ["a", "b"]
    assert way.arrived(100) == ["c"]
    assert way.arrived(100) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: World(users=0),
        lambda: World(patience=0),
        lambda: World(satisfaction=2),
        lambda: World(taste=-1),
        lambda: World(looks="down"),
        lambda: Feedback(lost=1.0),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()
