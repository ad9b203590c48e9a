"""Every file in conf/ composes, and every setting is there to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltrain.config import CONF, defaults_of

ROOTS = sorted(p.stem for p in CONF.glob("*.yaml"))
NEEDED = {
    "policy=weights": ["policy.start={age: 0.0}"],
    "data=feedback": ["data.store=x"],
    "data=parquet": ["data.path=x", "data.event_time=t", "data.label=y"],
    "trigger=volume": ["trigger.rows=10"],
    "model=custom": ["model._target_=cltrain.models.TabularNet"],
}
ADDED = {"policy"}  # groups that are in no root by default
# Parts of another part, chosen by name within it and not by themselves.
NESTED = {"train/stateful", "train/stateless"}
CHOICES = [
    f"{p.parent.name}={p.stem}"
    for p in sorted(CONF.glob("*/*.yaml"))
    if f"{p.parent.name}/{p.stem}" not in NESTED and p.parent.name not in ("experiment", "backtest")
]
EXPERIMENTS = sorted(p.stem for p in CONF.glob("experiment/*.yaml"))  # named after their job; without one, of the loop


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_composes(root: str, settings_of: Callable[..., dict[str, Any]]) -> None:
    assert settings_of(job=root)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes(choice: str, settings_of: Callable[..., dict[str, Any]]) -> None:
    group = choice.split("=")[0]
    settings = settings_of(f"+{choice}" if group in ADDED else choice, *NEEDED.get(choice, []))
    if group == "strategy":
        return
    node = settings[group]
    target = node.get("_target_")
    if target and (defaults := defaults_of(target)):
        assert defaults.keys() <= node.keys(), "a setting is missing from --cfg job"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str, settings_of: Callable[..., dict[str, Any]]) -> None:
    root = name.partition("_")[0]
    root = root if root in ROOTS else "loop"
    plain = settings_of(job=root)
    assert settings_of(f"+experiment={name}", job=root) != plain


def test_strategies_differ_in_their_part_only(settings_of: Callable[..., dict[str, Any]]) -> None:
    stateful = settings_of("strategy=stateful")
    others = {name: settings_of(f"strategy={name}") for name in ("manual", "periodic", "triggered")}
    differing = {name: {key for key in stateful if stateful[key] != other[key]} for name, other in others.items()}
    assert differing == {"manual": {"trigger"}, "periodic": {"method", "recalibrate"}, "triggered": {"trigger"}}


def test_the_cadence_is_one_override(settings_of: Callable[..., dict[str, Any]]) -> None:
    hourly, daily = settings_of("trigger.every=1h"), settings_of("trigger.every=24h")
    assert {key for key in hourly if hourly[key] != daily[key]} == {"trigger"}


def test_conf_names_are_folders_of_the_design() -> None:
    assert Path(CONF).name == "conf"
