"""Make a model from its settings and the data's shape."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from cltrain.batch import InputSpec
from cltrain.errors import ConfigError
from cltrain.models.tabular import TabularNet

_TABULAR = inspect.signature(TabularNet).parameters


def build_model(settings: Mapping[str, Any], spec: InputSpec) -> nn.Module:
    """Call `settings["_target_"]` with the other settings and with those of `spec`, `num_numeric`, `cardinalities`,
    `num_outputs` that it has parameters for. Raises `ConfigError` that names the setting to mend, and when the model
    does not take all inputs."""
    target, factory = settings.get("_target_"), _factory(settings)
    given = {k: v for k, v in settings.items() if k not in ("_target_", "name")}
    offered = {
        "spec": spec,
        "num_numeric": spec.num_numeric,
        "cardinalities": spec.cardinalities,
        "num_outputs": spec.num_outputs,
    }
    wanted = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in wanted.values()):
        # model._target_=… alone leaves the settings of conf/model/tabular.yaml behind: they are not for this model.
        given = {k: v for k, v in given.items() if k in wanted or k not in _TABULAR}
    try:
        model = factory(**{k: v for k, v in offered.items() if k in wanted and k not in given}, **given)
    except TypeError as error:
        raise ConfigError(f"model._target_={target} cannot be made with {sorted(given)}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_={target} gives {type(model).__name__}, which is not a torch.nn.Module")
    _check_forward(settings, model.forward, spec)
    return model


def check_model(settings: Mapping[str, Any], spec: InputSpec) -> None:
    """Before anything is made: raises `ConfigError` for a model that cannot take the tensors and texts of `spec`, or
    needs what it lacks (which its class says in `check(spec)`)."""
    factory = _factory(settings)
    if check := getattr(factory, "check", None):
        check(spec)
    if forward := getattr(factory, "forward", None):
        _check_forward(settings, forward, spec)


def _check_forward(settings: Mapping[str, Any], forward: Callable[..., Any], spec: InputSpec) -> None:
    try:
        wanted = inspect.signature(forward).parameters
    except (TypeError, ValueError):  # not one of Python's own
        return
    if any(p.kind is p.VAR_KEYWORD for p in wanted.values()):
        return
    for kind, model, columns in (("tensors", "cnn", spec.tensors), ("text", "text", spec.texts)):
        for column in columns:
            if column.name not in wanted:
                raise ConfigError(
                    f"model._target_={settings['_target_']} does not take column {column.name}, which holds {kind}: "
                    f"use model={model}, give its forward a parameter {column.name} (or **inputs), or leave the column "
                    f"out with data.exclude='[{column.name}]'"
                )


def supports_incremental(settings: Mapping[str, Any]) -> bool:
    """Whether a model of these settings can continue from a parent. A class that cannot says `supports_incremental =
    False`, and is trained from scratch each time."""
    return bool(getattr(_factory(settings), "supports_incremental", True))


def _factory(settings: Mapping[str, Any]) -> Callable[..., Any]:
    target = settings.get("_target_")
    if target in (None, "", "???"):
        raise ConfigError("model._target_ is not set: pass model._target_=package.Module")
    module, _, name = str(target).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"model._target_={target} cannot be imported: {error}") from error
