"""Carry parameters over to a model with more rows, or with other ones: new categories, new classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cltrain.batch import UNKNOWN
from cltrain.errors import UpdateError
from cltrain.models.head import new_rows as default_rows

Rows = dict[str, Tensor]  # by parameter name: (R,) int64


def grow_into(model: nn.Module, old: Mapping[str, Tensor]) -> None:
    """Load `old` into `model`, whose tensors may have more rows than those of `old`.

    New rows are what `model.new_rows(name, old, count)` says, or `cltrain.models.head.new_rows` of a model that does
    not, or else the model's own initialisation. Raises `UpdateError` if names or other dimensions differ: that is
    another architecture.
    """
    say = getattr(model, "new_rows", lambda *given: default_rows(model, *given))
    state = model.state_dict()
    if state.keys() != old.keys():
        differing = sorted(state.keys() ^ old.keys())[:4]
        raise UpdateError(f"the model's parameters are not those of its parent ({', '.join(differing)}): {ADVICE}")
    for name, tensor in state.items():
        before = old[name]
        if tensor.shape == before.shape:
            state[name] = before
            continue
        state[name] = grown(name, before, tensor)
        rows = say(name, before, tensor.shape[0] - before.shape[0])
        if rows is not None:
            state[name][before.shape[0] :] = rows
    model.load_state_dict(state)


def grown(name: str, old: Tensor, like: Tensor) -> Tensor:
    """`like` with its first rows replaced by those of `old`."""
    if old.dim() != like.dim() or old.shape[1:] != like.shape[1:] or old.shape[0] > like.shape[0]:
        raise UpdateError(f"parameter {name} was {tuple(old.shape)} and is now {tuple(like.shape)}: {ADVICE}")
    result = like.clone()
    result[: old.shape[0]] = old
    return result


def padded(old: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State that goes with parameters (moments, Fisher), with zeros for rows that are new."""
    return {name: grown(name, value, torch.zeros_like(like[name], dtype=value.dtype)) for name, value in old.items()}


def table_rows(model: nn.Module, places: Mapping[int, Sequence[int]], cardinalities: Sequence[int]) -> Rows:
    """By parameter name, the rows that belong to `places`, which are indices of categories by the position of their
    column. The table of a column is the next `nn.Embedding`, as registered, that has as many rows as the column has
    `cardinalities`; a column without one has nothing to give."""
    tables = [(name, m.num_embeddings) for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    found: Rows = {}
    for column, size in enumerate(cardinalities):
        at = next((i for i, (_, rows) in enumerate(tables) if rows == size), None)
        if at is not None:
            if places.get(column):
                found[f"{tables[at][0]}.weight"] = torch.tensor(places[column])
            tables = tables[at + 1 :]
    return found


def restarted(weights: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """`weights` where the `rows` of each table are copies of its unknown category's."""
    return {n: _with(w, rows.get(n), w[UNKNOWN] if n in rows else 0) for n, w in weights.items()}


def copied(anchors: Mapping[str, Tensor], rows: Rows, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`anchors` where the `rows` are those of `weights`."""
    return {n: _with(a, rows.get(n), weights[n][rows[n]] if n in rows else 0) for n, a in anchors.items()}


def forgotten(named: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """`named` moments or importances, by parameter or by slot and parameter (`exp_avg/head.weight`), with 0 in the
    `rows`."""
    return {
        key: _with(value, rows.get(key.rsplit("/", 1)[-1]) if value.dim() else None, 0) for key, value in named.items()
    }


def _with(value: Tensor, rows: Tensor | None, row: Tensor | int) -> Tensor:
    return value if rows is None else value.index_put((rows,), torch.as_tensor(row, dtype=value.dtype))


ADVICE = "a stateful update needs the same architecture; recalibrate (train from scratch), which starts a new major"
