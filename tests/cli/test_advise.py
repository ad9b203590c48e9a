"""Which online test to run, by command."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cltrain.cli import app
from cltrain.online.recommend import Situation, recommend


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["recommend", "--units-per-day", "5000", "--effect", "0.01", *words])


def test_a_test_is_recommended_with_its_units_days_and_settings() -> None:
    result = call("--answers", "ranking", "--rate", "0.1")
    assert result.exit_code == 0, result.output
    first, why, settings = result.output.splitlines()
    assert first == "interleave: 9,959 units, 3 days"
    assert "two rankings in one list" in why
    assert settings == "settings: rollout=interleave rollout.max_s=259200"
    assert "and no proof" in call("--answers", "action", "--rate", "0.5", "--delay", "60d").output


def test_every_option_reaches_the_recommendation() -> None:
    words = "--answers prediction --spread 0.4 --delay 2d --versions 3 --days 20 --level 0.1 --power 0.9 --pairing 0.5"
    result = call(*words.split(), "--cycle", "1d", "--json")
    assert result.exit_code == 0, result.output
    found = recommend(
        Situation(
            answers="prediction",
            units_per_day=5_000,
            effect=0.01,
            spread=0.4,
            delay="2d",
            versions=3,
            days=20,
            level=0.1,
            power=0.9,
            pairing=0.5,
            cycle="1d",
        )
    )
    assert json.loads(result.output) == vars(found)
    offer = ("--answers", "action", "--spread", "0.3", "--json")
    assert json.loads(call(*offer, "--cycle", "1d").output)["days"] < json.loads(call(*offer).output)["days"]
    assert json.loads(call(*offer, "--days", "3").output)["test"] == "bandit"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--answers", "chat", "--spread", "1"), "answers must be prediction, ranking or action"),
        (("--answers", "action"), "either --spread, or --rate"),
        (("--answers", "action", "--spread", "1", "--rate", "0.1"), "either --spread, or --rate"),
        (("--answers", "action", "--rate", "1"), "--rate must be above 0 and below 1"),
        (("--answers", "action", "--rate", "0.1", "--delay", "late"), "duration"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1
