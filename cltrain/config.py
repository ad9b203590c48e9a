"""From settings to live parts. A part is a dataclass; its settings are a mapping with `_target_`.

The settings are checked against the dataclass before anything is made: a wrong key or type names the key and the fix.
Ranges are checked by the dataclasses themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from cltrain.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"


def build(settings: Any, path: str = "") -> Any:
    """Make the part that `settings["_target_"]` names, and the parts within it. Values without `_target_` stay what they
    are. Raises `ConfigError`, whose message starts with the dotted key below `path`."""
    if isinstance(settings, Mapping):
        made = {key: build(value, f"{path}.{key}" if path else str(key)) for key, value in settings.items()}
        if "_target_" not in made:
            return made
        factory = locate(made.pop("_target_"), f"{path}._target_")
        if dataclasses.is_dataclass(factory):
            _check_fields(factory, made, path)
        try:
            return factory(**made)
        except TypeError as error:
            raise ConfigError(f"{path}: {error}") from error
    if isinstance(settings, list | tuple):
        return [build(item, path) for item in settings]
    return settings


def locate(target: str, path: str) -> Any:
    module, _, name = str(target).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}={target} cannot be imported: {error}") from error


def defaults_of(target: str) -> dict[str, Any]:
    """All settings of the part `target` with their defaults; `???` marks one that must be given."""
    part = locate(target, "_target_")
    if not dataclasses.is_dataclass(part):
        return {}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        if not field.init:
            continue
        value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value is dataclasses.MISSING:
            found[field.name] = "???"
        elif not dataclasses.is_dataclass(value):
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def register_defaults(conf: Path = CONF) -> None:
    """Let every file `conf/<group>/<part>.yaml` with a `_target_` name `_<part>` in its defaults list: the part's settings
    with the defaults of its dataclass. So a file holds what differs, and `--cfg job` shows everything."""
    import yaml
    from hydra.core.config_store import ConfigStore

    for file in sorted(conf.glob("*/*.yaml")):
        target = (yaml.safe_load(file.read_text()) or {}).get("_target_")
        if target and target != "???":
            ConfigStore.instance().store(group=file.parent.name, name=f"_{file.stem}", node=defaults_of(target))


def _check_fields(part: Any, given: Mapping[str, Any], path: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(part) if f.init}
    hints = typing.get_type_hints(part)
    for key, value in given.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {path}.{close[0]}?" if close else f"it has: {', '.join(fields) or 'none'}"
            raise ConfigError(f"{path}.{key}: {part.__name__} has no such setting; {hint}")
        if value == "???":
            raise ConfigError(f"{path}.{key} is not set: pass {path}.{key}=VALUE")
        if not _fits(hints[key], value):
            raise ConfigError(f"{path}.{key}={value!r} must be {_name(hints[key])}")
    missing = [
        f"{path}.{name}"
        for name, f in fields.items()
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not set: pass {missing[0]}=VALUE")


def _fits(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(arg, value) for arg in args)
    if origin is Literal:
        return value in args
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(args[1], item) for item in value.values())
    if origin is tuple or (origin is not None and issubclass(origin, Sequence)):
        return isinstance(value, list | tuple) and all(_fits(args[0], item) for item in value)
    return True


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list of {_name(args[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
