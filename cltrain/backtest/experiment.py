"""A strategy as a file that `python -m jobs.loop --config-dir DIR +experiment=NAME` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cltrain.backtest.strategy import GROUPS, Compose, Composed
from cltrain.records import Json

KEYS = (*GROUPS, "data", "clock", "seed")


def experiment(chosen: Composed, compose: Compose, about: Sequence[str]) -> str:
    """The text of the file. `compose` is that of `jobs.loop` without a command line; `about` are lines of comment."""
    plain = compose(())
    groups = {
        group: choice
        for group, choice in chosen.choices.items()
        if group in KEYS and choice is not None and plain.choices.get(group) != choice
    }
    base = compose([f"{group}={choice}" for group, choice in groups.items()])
    body: Json = {}
    for key in KEYS:
        changed = _changed(base.settings[key], chosen.settings[key])
        if changed is not _SAME:
            body[key] = changed
    defaults: list[Any] = [{f"override /{group}": choice} for group, choice in groups.items()]
    text = "# @package _global_\n" + "".join(f"# {line}\n" for line in about)
    parts = ({"defaults": [*defaults, "_self_"]} if defaults else {}) | body
    return text + (yaml.safe_dump(parts, sort_keys=False, allow_unicode=True) if parts else "")


_SAME = object()


def _changed(base: Any, other: Any) -> Any:
    """What must be merged into `base` to make it `other`."""
    if isinstance(base, Mapping) and isinstance(other, Mapping):
        found = {key: _changed(base.get(key, _SAME), value) for key, value in other.items()}
        found = {key: value for key, value in found.items() if value is not _SAME}
        return found or _SAME
    return _SAME if base == other and type(base) is type(other) else other
