"""Strategies: named ones and points of a space, as resolved settings. Who composes settings is not said here."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cltrain.assemble import STRATEGY
from cltrain.backtest.settings import Backtest
from cltrain.clock import parse_duration
from cltrain.config import build
from cltrain.errors import ConfigError
from cltrain.records import Json
from cltrain.search import Values, setting, values_of, with_settings

FIXED = ("data", "clock", "seed")  # of all strategies alike
GROUPS = tuple(group for group in STRATEGY if group not in FIXED)
CADENCE = ("window", "trigger", "recalibrate")


@dataclass(frozen=True)
class Composed:
    """Resolved settings, and the file of each group that they were made of."""

    settings: Json
    choices: Mapping[str, str] = field(default_factory=dict)


Compose = Callable[[Sequence[str]], Composed]  # from overrides on top of those of the command line


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """`changes` are what differs from the present settings, as one reads it; `point`, by key of the space, is what the
    searcher asked for. kind: `data` or `model` where it is tried to say where compute is better spent."""

    name: str
    overrides: tuple[str, ...] = ()
    composed: Composed
    changes: Json = field(default_factory=dict)
    point: Json | None = None
    kind: str | None = None

    @property
    def settings(self) -> Json:
        return {key: self.composed.settings[key] for key in STRATEGY}


@dataclass(frozen=True)
class Strategies:
    """Makes strategies of what `compose` gives; `current` are the present settings."""

    compose: Compose
    backtest: Backtest
    current: Strategy
    space: Mapping[str, Values]

    @classmethod
    def of(cls, compose: Compose, backtest: Backtest) -> Strategies:
        known = lru_cache(maxsize=256)(compose)
        compose = lambda overrides: known(tuple(overrides))  # noqa: E731
        current = Strategy(name="current", composed=compose(()))
        return cls(compose, backtest, current, _space(compose, current.composed.settings, backtest))

    def named(self, name: str, overrides: Sequence[str] | None = None) -> Strategy:
        """The strategy of these overrides, or of the file of that name: of conf/strategy, else of conf/experiment."""
        chosen = (f"strategy={name}",) if overrides is None else tuple(overrides)
        try:
            found = self.compose(chosen)
        except ConfigError:
            if overrides is not None:
                raise
            chosen = (f"+experiment={name}",)
            try:
                found = self.compose(chosen)
            except ConfigError as error:
                raise ConfigError(
                    f"backtest: {name} is neither a file of conf/strategy nor of conf/experiment that fits: {error}"
                ) from error
        return self._strategy(name, chosen, found)

    def at(self, name: str, point: Mapping[str, Any], kind: str | None = None) -> Strategy:
        """The strategy at a point of the space. Keys that its choice of parts does not have are left out."""
        groups = tuple(f"{key}={point[key]}" for key in self.space if key in point and _is_group(key))
        known = set(_keys(self.compose(groups).settings))
        dotted = tuple(
            f"{key}={grammar(point[key])}" for key in self.space if key in point and not _is_group(key) and key in known
        )
        return self._strategy(name, groups + dotted, self.compose(groups + dotted), dict(point), kind)

    def one_by_one(self) -> Iterator[Strategy]:
        """The present settings with one key of the space changed: another model, or another cadence."""
        for key, values in self.space.items():
            group = key.split(".")[0]
            kind = "model" if group in ("model", "adapter") else "data" if group in CADENCE else None
            for value in values.extremes if kind else ():
                made = self.at(f"{key}={_said(value)}", {key: value}, kind)
                if made.settings != self.current.settings:
                    yield made

    def _strategy(
        self,
        name: str,
        overrides: tuple[str, ...],
        found: Composed,
        point: Json | None = None,
        kind: str | None = None,
    ) -> Strategy:
        if (bootstrap := _bootstrap(self.current.settings["window"], found.settings["window"])) is not None:
            overrides = (*overrides, f"window.bootstrap={bootstrap}")
            found = self.compose(overrides)
        changes = differences(self.current.settings, {key: found.settings[key] for key in STRATEGY})
        for key in FIXED:
            if found.settings[key] != self.current.settings[key]:
                raise ConfigError(f"backtest: {name} changes {key}, which must be the same for all strategies")
        return Strategy(name=name, overrides=overrides, composed=found, changes=changes, point=point, kind=kind)


def _bootstrap(current: Mapping[str, Any], window: Mapping[str, Any]) -> int | None:
    """Windows that the first one must span to be about as long as that of the present settings, so that all strategies
    begin with the same model; None where it is so, or cannot be."""
    if current["_target_"] != window["_target_"] or window.get("bootstrap") != current.get("bootstrap"):
        return None
    sizes = [
        parse_duration(w["every"]).total_seconds() if "every" in w else float(w.get("rows", 0))
        for w in (current, window)
    ]
    if not all(sizes) or sizes[0] == sizes[1] or "bootstrap" not in window:
        return None
    return max(1, round(window["bootstrap"] * sizes[0] / sizes[1]))


def grammar(value: Any) -> str:
    """A plain value as an override says it.

    >>> grammar([64, None]), grammar("7d"), grammar(True)
    ('[64,null]', "'7d'", 'true')
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(grammar, value))}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return json.dumps(value)


def differences(base: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> Json:
    """Dotted key -> value in `other`, where it differs from `base`; what `other` lacks is None. A part of another kind
    (`_target_`) counts as a whole.

    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
    {'a.c': 3, 'd': 4}
    """
    found: Json = {}
    for key in dict.fromkeys([*base, *other]):
        name, old, new = f"{path}{key}", base.get(key), other.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if old.get("_target_") == new.get("_target_"):
                found |= differences(old, new, f"{name}.")
            else:
                found[name] = new.get("_target_", new)
        elif old != new:
            found[name] = new.get("_target_", new) if isinstance(new, Mapping) else new
    return found


def usual_space(settings: Mapping[str, Any]) -> Json:
    """Half to four times the present cadence, and the settings that decide on cost and on forgetting."""
    space: Json = {
        "recalibrate.every": [None, 6, 12, 24],
        "train.stateful.epochs": [1, 2, 4],
        "train.stateful.learning_rate": _around(setting(settings, "train.stateful.learning_rate"), 4),
        "train.stateless.epochs": [1, 2, 3, 5],
        "method": ["replay_ewc", "replay", "finetune"],
        "method.parts.replay.ratio": [0.1, 0.25, 0.5, 1.0, 2.0],
        "method.parts.ewc.strength": {"low": 0.1, "high": 100.0, "log": True},
        "method.ratio": [0.1, 0.25, 0.5, 1.0, 2.0],
        "memory.capacity_rows": [5_000, 20_000, 60_000],
    }
    window = settings["window"]
    if "every" in window:
        seconds = parse_duration(window["every"]).total_seconds()
        space["window.every"] = [window["every"], *(f"{seconds * factor:.15g}s" for factor in (0.5, 2, 4))]
    elif "rows" in window:
        space["window.rows"] = [window["rows"], *(max(1, round(window["rows"] * factor)) for factor in (0.5, 2, 4))]
    if isinstance(settings["model"].get("hidden"), list):
        hidden = settings["model"]["hidden"]
        space["model.hidden"] = [hidden, [2 * units for units in hidden], [4 * units for units in hidden]]
    return space


def _around(value: float, factor: float) -> Json:
    return {"low": value / factor, "high": value * factor, "log": True}


def _space(compose: Compose, settings: Json, backtest: Backtest) -> dict[str, Values]:
    """The space, each key and value of which fits. Raises `ConfigError` that names the key."""
    given = backtest.space if backtest.space is not None else {} if backtest.named else usual_space(settings)
    space: dict[str, Values] = {}
    variants = [settings]
    for key, value in given.items():
        try:
            space[key] = values_of(key, value)
        except ConfigError as error:
            raise ConfigError(str(error).replace("search.space", "backtest.space")) from error
        if _is_group(key):
            variants += [compose((f"{key}={choice}",)).settings for choice in space[key].choices]
    known = {key for variant in variants for key in _keys(variant)}
    for key in [key for key in space if not _is_group(key)]:
        if key not in known and backtest.space is None:
            del space[key]
            continue
        if key not in known or key.split(".")[0] not in GROUPS or key == "model.name":
            close = difflib.get_close_matches(key, [k for k in known if k.split(".")[0] in GROUPS], n=1)
            hint = f"did you mean {close[0]}?" if close else f"strategies differ in {', '.join(GROUPS)}"
            raise ConfigError(f"backtest.space: {key} is no setting that strategies can differ in; {hint}")
        _require_buildable(key, space[key], next(v for v in variants if key in set(_keys(v))))
    return space


def _require_buildable(key: str, values: Values, settings: Json) -> None:
    for value in values.extremes:
        changed = with_settings(settings, {key: value})
        group = key.split(".")[0]
        try:
            if group != "model":  # which needs the rows
                build(changed[group], group)
        except ConfigError as error:
            raise ConfigError(f"backtest.space: {key}={value!r} cannot be: {error}") from error


def _is_group(key: str) -> bool:
    return "." not in key


def _keys(settings: Any, path: str = "") -> Iterator[str]:
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield f"{path}{key}"
            yield from _keys(value, f"{path}{key}.")


def _said(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.3g}"
    return str(value).replace(" ", "")
