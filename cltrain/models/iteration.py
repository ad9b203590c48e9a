"""Is it more data, or another model? What makes an update a model iteration, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cltrain.models.surgery import Encoding


def difference(
    old_model: Mapping[str, Any],
    new_model: Mapping[str, Any],
    old: Encoding,
    new: Encoding,
    old_features: Sequence[Any] = (),
    new_features: Sequence[Any] = (),
) -> list[str]:
    """What makes this a model iteration, in words; nothing if it is a data iteration, in which at most new categories
    and classes join at the end. Of models the settings are compared, of data the encoders, and the features (with
    `name` and `kind`) of the schemas.

    >>> from types import SimpleNamespace
    >>> encoder = SimpleNamespace(task="binary", numeric=(), categorical=(), classes=())
    >>> difference({"hidden": [64, 32]}, {"hidden": [128, 32]}, encoder, encoder)
    ['model.hidden was [64, 32] and is [128, 32]']
    """
    found = [
        f"model.{key} was {old_model.get(key)} and is {new_model.get(key)}"
        for key in dict.fromkeys([*old_model, *new_model])
        if key != "name" and _plain(old_model.get(key)) != _plain(new_model.get(key))
    ]
    if old.task != new.task:
        found.append(f"the task was {old.task} and is {new.task}")
    before, after = ({f.name: f for f in features} for features in (old_features, new_features))
    found += [f"{feature.kind} feature {name} is new" for name, feature in after.items() if name not in before]
    found += [f"{feature.kind} feature {name} is gone" for name, feature in before.items() if name not in after]
    found += [
        f"feature {name} was {feature.kind} and is {after[name].kind}"
        for name, feature in before.items()
        if name in after and after[name].kind != feature.kind
    ]
    now = {c.name: c for c in (*new.numeric, *new.categorical, *_others(new))}
    for column in (*old.numeric, *old.categorical, *_others(old)):
        heir = now.get(column.name, column)
        if hasattr(column, "categories") and hasattr(heir, "categories"):
            # An extension may give the place of a category that was not met for long to another one.
            if not _begins(heir.categories, column.categories) and heir.extensions <= column.extensions:
                found.append(f"categories of {column.name} were removed or have another order")
        elif type(heir) is type(column) and heir != column:
            found.append(f"the way in which {column.name} is encoded changed")
    if not _begins(new.classes, old.classes):
        found.append("classes of the label were removed or have another order")
    return found


def _others(encoder: Encoding) -> Sequence[Any]:
    return *getattr(encoder, "tensors", ()), *getattr(encoder, "texts", ())


def _begins(longer: Sequence[str], shorter: Sequence[str]) -> bool:
    return tuple(longer[: len(shorter)]) == tuple(shorter)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
