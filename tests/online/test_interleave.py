from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.errors import ConfigError
from cltrain.online.interleave import Interleaved, Wins, credit, preference_evidence, team_draft
from cltrain.online.simulator import World

rankings = st.lists(st.integers(0, 12), unique=True, max_size=8)


@settings(max_examples=40, deadline=None)
@given(rankings, rankings, st.integers(1, 10), st.integers(0, 9))
def test_a_draft_holds_the_best_of_both_once(a: list[int], b: list[int], length: int, seed: int) -> None:
    drafted = team_draft(a, b, length, np.random.default_rng(seed))
    assert len(drafted.items) == len(drafted.teams) == min(length, len(set(a) | set(b)))
    assert len(set(drafted.items)) == len(drafted.items)
    for team, ranking in (("champion", a), ("challenger", b)):
        own = [ranking.index(item) for item, t in zip(drafted.items, drafted.teams, strict=True) if t == team]
        assert own == sorted(own)
    if drafted.items:
        assert drafted.items[0] in (*a[:1], *b[:1])


def test_both_captains_are_first_equally_often() -> None:
    generator = np.random.default_rng(0)
    first = [team_draft("abc", "xyz", 4, generator).teams[0] == "champion" for _ in range(4_000)]
    assert np.mean(first) == pytest.approx(0.5, abs=0.02)


def test_what_both_rank_alike_is_nobodys() -> None:
    drafted = team_draft("abc", "abd", 4, np.random.default_rng(0))
    assert drafted.items[:2] == ("a", "b")
    assert drafted.teams[:2] == ("neither", "neither")
    assert set(drafted.teams[2:]) == {"champion", "challenger"}
    assert credit(drafted, {"a", "b"}) == 0
    assert credit(drafted, {"d", "a"}) == -credit(drafted, {"c", "b"}) > 0


def test_credit_goes_to_the_team_that_was_clicked() -> None:
    shown = Interleaved(items=("a", "b", "c"), teams=("champion", "challenger", "champion"))
    assert [credit(shown, clicked) for clicked in ({"a", "c", "b"}, {"b"}, {"a", "b"}, set())] == [-1, 1, 0, 0]


def test_equally_good_rankers_win_equally_often_and_a_better_one_wins() -> None:
    world, generator = World(users=2_500, items=40), np.random.default_rng(0)
    champion = world.ranking("a", 1.0)
    for version, noise, low, high in (("b", 1.0, 0.465, 0.535), ("c", 0.0, 0.58, 0.8)):
        challenger, wins = world.ranking(version, noise), Wins()
        drafts = [team_draft(a, b, 10, generator) for a, b in zip(champion.tolist(), challenger.tolist(), strict=True)]
        clicked = world.clicks(np.arange(2_500), np.array([d.items for d in drafts]), generator)
        for draft, clicks in zip(drafts, clicked, strict=True):
            wins = wins.add(credit(draft, {item for item, c in zip(draft.items, clicks, strict=True) if c}))
        found = wins.preference()
        assert low < found.estimate < high
        assert (found.low > 0.5) == (version == "c")


@pytest.mark.parametrize("sizes", ["one", "many", "heavy"])
def test_the_test_may_be_read_after_every_session(sizes: str) -> None:
    """Whatever the sizes of credits, and from the first session on."""
    generator = np.random.default_rng(0)
    shape = (1_000, 500)
    size = {"one": np.ones(shape), "many": generator.lognormal(size=shape), "heavy": generator.pareto(1.0, shape)}[
        sizes
    ]
    credits = size * generator.choice([-1.0, 1.0], shape)
    evidence = preference_evidence(credits.cumsum(1), np.square(credits).cumsum(1))
    assert (evidence >= -np.log(0.05)).any(1).mean() < 0.066


def test_users_who_click_without_looking_prefer_nobody() -> None:
    """Whatever the rankings, and however unlike their places: the coins alone say whose an item is."""
    champion, challenger = list(range(20)), [7, 0, 19, 3, 12, 5, *range(13, 19), 1, 2, 4, 6, 8, 9, 10, 11]
    generator, places = np.random.default_rng(0), 1 / np.arange(1, 11)
    net = square = 0.0
    for _ in range(4_000):
        shown = team_draft(champion, challenger, 10, generator)
        clicked = {item for item, click in zip(shown.items, generator.random(10) < places, strict=True) if click}
        net, square = net + credit(shown, clicked), square + credit(shown, clicked) ** 2
    assert abs(net) < 3.5 * square**0.5


def test_a_click_weighs_by_how_far_apart_the_rankings_are() -> None:
    shown = team_draft("abcdef", "aebcdf", 6, np.random.default_rng(0))
    weights = dict(zip(shown.items, shown.weights, strict=True))
    assert shown.items[0] == "a"
    assert weights["a"] == 0
    assert weights["b"] == weights["e"] == pytest.approx((np.log(5 / 2) + np.log(3 / 2)) / 4, abs=1e-3)
    near = team_draft("abcdef", "abcdfe", 6, np.random.default_rng(0))
    assert credit(near, {"e"}) != 0
    assert abs(credit(near, {"e"})) < weights["b"]
    left_out = team_draft("ab", "cd", 4, np.random.default_rng(0))
    assert max(left_out.weights) == pytest.approx(2 * np.log(3) / 4, abs=1e-3)


def test_what_only_one_has_left_is_nobodys() -> None:
    """Nobody else could have picked it, so its clicks would be a gift."""
    shown = team_draft("a", "bcd", 4, np.random.default_rng(0))
    assert shown.teams[2:] == ("neither", "neither")
    assert shown.propensity == 0.5


def test_wins_add_up_with_and_without_sizes() -> None:
    credits = np.array([0.5, -2.0, 0.0, 1.0])
    whole = Wins()
    for one in credits:
        whole = whole.add(one)
    assert whole == Wins.of(credits) == Wins.of(credits[:2]) + Wins.of(credits[2:])
    assert (whole.net, whole.size, whole.square) == (-0.5, 3.5, 5.25)
    counted = Wins(challenger=2, champion=1, ties=1)
    assert counted.preference() == Wins.of(np.array([1.0, 1.0, -1.0, 0.0])).preference()
    assert counted.add(-0.5) == counted + Wins.of(np.array([-0.5]))
    both = counted + whole
    assert (both.net, both.size, both.square) == (0.5, 6.5, 8.25)


def test_bounds_of_a_preference() -> None:
    assert Wins().preference().low == 0
    assert Wins(champion=20).preference().high < 0.5
    found = Wins(challenger=60, champion=40, ties=7).preference(0.05)
    assert found.low < 0.5 < 0.6 == found.estimate < found.high
    level = found.p  # at which the interval just reaches 0.5
    assert Wins(challenger=60, champion=40, ties=7).preference(level).low == pytest.approx(0.5)


def test_a_list_has_a_length() -> None:
    with pytest.raises(ConfigError, match="length"):
        team_draft("ab", "ba", 0, np.random.default_rng(0))
