"""From settings to live parts. A part is a dataclass; its settings are a mapping with `_target_`.

The settings are checked against the dataclass before anything is made: a wrong key or type names the key and the fix.
Ranges are checked by the dataclasses themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from cltrain.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"


def build(settings: Any, path: str = "") -> Any:
    """Make the part that `settings["_target_"]` names, and the parts within it. Values without `_target_` stay what
    they are, but for lists, which become tuples where the part declares tuples. Raises `ConfigError`, whose message
    starts with the dotted key of the setting, below `path`."""
    if isinstance(settings, Mapping):
        made = {key: build(value, _below(path, key)) for key, value in settings.items()}
        if "_target_" not in made:
            return made
        factory = locate(made.pop("_target_"), _below(path, "_target_"))
        if dataclasses.is_dataclass(factory):
            made = _checked(factory, made, path)
        try:
            return factory(**made)
        except ConfigError as error:
            raise ConfigError(_with_path(str(error), made, path)) from error
        except TypeError as error:
            raise ConfigError(f"{path}: {error}") from error
    if isinstance(settings, list | tuple):
        return [build(item, f"{path}[{i}]") for i, item in enumerate(settings)]
    return settings


def locate(target: Any, path: str) -> Any:
    """The class or function `package.module.Name`; `path` is the key to name when there is none."""
    if target in (None, "", "???"):
        raise ConfigError(f"{path} is not set: pass {path}=package.module.Name")
    module, _, name = str(target).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}={target} cannot be imported: {error}") from error


def defaults_of(target: str) -> dict[str, Any]:
    """All settings of the part `target` with their defaults; `???` marks one that must be given. Parts within it are
    not
    among them: their settings are those of their own file."""
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
    """Let every file `conf/<group>/<part>.yaml` with a `_target_` name `_<part>` in its defaults list: the part's
    settings with the defaults of its dataclass. So a file holds what differs, and `--cfg job` shows everything."""
    import yaml
    from hydra.core.config_store import ConfigStore

    for file in sorted(conf.glob("*/*.yaml")):
        target = (yaml.safe_load(file.read_text()) or {}).get("_target_")
        if target and target != "???":
            ConfigStore.instance().store(group=file.parent.name, name=f"_{file.stem}", node=defaults_of(target))


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _with_path(message: str, settings: Mapping[str, Any], path: str) -> str:
    """A part names its settings as if it were alone, such as method.strength; here they are named where they are,
    such as method.parts.ewc.strength."""
    alone = path.split(".", 1)[0]
    if not settings or not alone:
        return message
    return re.sub(rf"\b{alone}\.(?=({'|'.join(map(re.escape, settings))})\b)", f"{path}.", message)


def _checked(part: Any, given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`given`, if its keys and types are those of `part`, with tuples for lists where it declares tuples."""
    fields = {f.name: f for f in dataclasses.fields(part) if f.init}
    hints = typing.get_type_hints(part)
    for key, value in given.items():
        name = _below(path, key)
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {_below(path, close[0])}?" if close else f"it has: {', '.join(fields) or 'none'}"
            raise ConfigError(f"{name}: {part.__name__} has no such setting; {hint}")
        if value == "???":
            raise ConfigError(f"{name} is not set: pass {name}=VALUE")
        if not _fits(hints[key], value):
            raise ConfigError(f"{name}={value!r} must be {_name(hints[key])}")
    missing = [
        _below(path, name)
        for name, f in fields.items()
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not set: pass {missing[0]}=VALUE")
    return {key: _shaped(hints[key], value) for key, value in given.items()}


def _shaped(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _shaped(next(arg for arg in args if _fits(arg, value)), value)
    if origin is tuple and isinstance(value, list):
        return tuple(_shaped(arg, item) for arg, item in zip(_item_hints(args, value), value, strict=True))
    return value


def _item_hints(args: tuple[Any, ...], value: Sequence[Any]) -> Sequence[Any]:
    """One hint for each item of a tuple, both of `tuple[int, ...]` and of `tuple[int, str]`."""
    return [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args


def _fits(hint: Any, value: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(arg, value) for arg in args)
    if origin is Literal:
        return value in args
    if hint is type(None):
        return value is None
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(args[1], item) for item in value.values())
    if origin is tuple:
        hints = _item_hints(args, value) if isinstance(value, list | tuple) else ()
        return isinstance(value, list | tuple) and len(hints) == len(value) and all(map(_fits, hints, value))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(args[0], item) for item in value)
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(hint) if not name.startswith("_"))
    return isinstance(value, hint) if isinstance(hint, type) and origin is None else True


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
    if isinstance(hint, type) and hint not in names:
        return f"a {hint.__name__}, which is settings with a _target_"
    return names.get(hint, str(hint))
