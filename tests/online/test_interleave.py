from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.errors import ConfigError
from cltrain.online.interleave import Interleaved, Wins, credit, sign_evidence, team_draft
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
    assert credit(drafted, {"d", "a"}) == 1


def test_credit_goes_to_the_team_with_more_clicks() -> None:
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


def test_the_sign_test_may_be_read_after_every_session() -> None:
    wins = np.random.default_rng(0).integers(0, 2, (1_000, 500)).cumsum(1)
    assert (sign_evidence(wins, np.arange(1, 501)) >= -np.log(0.05)).any(1).mean() < 0.066


def test_bounds_of_a_preference() -> None:
    assert Wins().preference().low == 0
    assert Wins(champion=20).preference().high < 0.5
    found = Wins(challenger=60, champion=40, ties=7).preference(0.05)
    assert found.low < 0.5 < 0.6 == found.estimate < found.high
    assert sign_evidence(60, 100, found.low) == pytest.approx(-np.log(0.05), abs=1e-4)


def test_a_list_has_a_length() -> None:
    with pytest.raises(ConfigError, match="length"):
        team_draft("ab", "ba", 0, np.random.default_rng(0))
