"""Carry a parent over to a model of another architecture, so that a model iteration need not start from zero.

A plan says for every entry of the new parameters which entry of the parent it continues, if any; the same plan serves
weights, Fisher, anchor and moments. What is new starts so that it changes no output: new units have random incoming and
zero outgoing weights, new inputs have zero weights, inserted layers are the identity. Inputs, categories and classes
are matched by name, not by place. Net2Net (Chen et al. 2016) copies units and shares out their outgoing weights
instead, and needs noise so that the copies come to differ; here they differ from the start, and nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cltrain.errors import UpdateError
from cltrain.models.alignment import aligned_layers
from cltrain.models.head import new_rows
from cltrain.models.tabular import ColumnsNet, PiecewiseLinear, TabularNet
from cltrain.models.text import EncoderLayer

FIRST = 2  # the rows of a table before it are those of the unknown category and of null
Named = Mapping[str, Tensor]
Index = tuple[int, ...]  # along one dimension: the entry of the parent that each entry continues, -1 if it is new


class Encoding(Protocol):
    """What is read of a `cltrain.data.encoder.Encoder`."""

    @property
    def task(self) -> str: ...
    @property
    def numeric(self) -> Sequence[Any]: ...
    @property
    def categorical(self) -> Sequence[Any]: ...
    @property
    def classes(self) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What the entries of a parameter stand for, where their place does not say it. `parameter` names the parameter
    itself; None: its own name, or places that count from the front."""

    parameter: Hashable = None
    rows: Sequence[Hashable] | None = None
    columns: Sequence[Hashable] | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor of the new model continues `old`; `index` has one entry for each dimension."""

    old: str
    index: tuple[Index, ...]

    @property
    def whole(self) -> bool:
        return all(-1 not in along for along in self.index)

    def lost(self, old: torch.Size) -> bool:
        """Whether some entries of the parent's tensor, of this shape, are left behind."""
        return any(len({*along} - {-1}) < size for along, size in zip(self.index, old, strict=True))


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a surgery did, by parameter: `whole` ones are the parent's, `grown` ones in part; `identity` layers pass on
    what they are given; `dropped` is what the parent had and its heir lacks. `difference`: the largest absolute
    difference between the two models' outputs before training, where it was measured."""

    whole: tuple[str, ...]
    grown: tuple[str, ...]
    identity: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """pieces: by name of the new tensor. identity: inserted linear layers, with the width that they pass on. forgotten:
    by first layer of the parent, the inputs that the new model lacks, by place and name. gained: those it adds."""

    pieces: Mapping[str, Piece]
    identity: Mapping[str, int] = field(default_factory=dict)
    forgotten: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    gained: tuple[str, ...] = ()


def plan_surgery(
    parent: nn.Module,
    net: nn.Module,
    old: Encoding | None = None,
    new: Encoding | None = None,
    names: Mapping[str, str | None] | None = None,
) -> Plan:
    """How `net` continues `parent`. `old` and `new` are their encoders; `names` says which parameter or module of the
    parent (value; None: none, it is new) one of `net` (key) continues, where that is not the one of the same name or
    place.

    Perceptrons (an `nn.Sequential` of linear layers and ReLU, maybe dropout) are matched layer by layer, with
    identities in between; all else by name and shape. A model may have `axes(encoder)` that gives `Axes` by parameter
    name, as `columns_axes` does for our models. Raises `UpdateError` when nothing fits, or a perceptron would lose
    units.
    """
    names = names or {}
    layers, identity = aligned_layers(parent, net)
    before, axes = _axes(parent, old), _axes(net, new)
    places = {axis.parameter: name for name, axis in before.items() if axis.parameter is not None}
    theirs, ours = _tensors(parent), _tensors(net)
    _check_names(names, ours, theirs)

    def source(name: str) -> str | None:
        module, _, leaf = name.rpartition(".")
        for given in sorted(names, key=len, reverse=True):
            if name == given or name.startswith(f"{given}."):
                heir_of = names[given]
                return None if heir_of is None else heir_of + name[len(given) :]
        if name in axes and axes[name].parameter is not None:
            return places.get(axes[name].parameter)
        if module in layers:
            return None if layers[module] is None else f"{layers[module]}.{leaf}"
        return name

    pieces: dict[str, Piece] = {}
    forgotten: dict[str, Mapping[int, str]] = {}
    gained: list[str] = []
    for name, tensor in ours.items():
        if (old_name := source(name)) not in theirs or old_name is None:
            continue
        was, now = before.get(old_name, Axes()), axes.get(name, Axes())
        module = net.get_submodule(name.rpartition(".")[0])
        index = _indices(module, theirs[old_name].shape, tensor.shape, was, now)
        if index is None:
            continue
        pieces[name] = Piece(old=old_name, index=index)
        if was.columns is not None and now.columns is not None:
            kept = set(index[1])
            forgotten[old_name] = {i: _text(c) for i, c in enumerate(was.columns) if i not in kept}
            gained += [_text(now.columns[i]) for i, j in enumerate(index[1]) if j < 0]
    matrices = [name for name, value in theirs.items() if value.dim() > 1]
    telling = matrices if len(matrices) == 1 or matrices[-1] in forgotten or names else matrices[:-1]
    if not {piece.old for piece in pieces.values()} & set(telling):  # a last layer fits models of any kind
        raise UpdateError(
            f"nothing of the parent fits the new model: its parameters are {_shapes(theirs)}, and the new ones "
            f"{_shapes(ours)}; pass transfer.names={{new: old}}, or train from scratch"
        )
    return Plan(pieces=pieces, identity=identity, forgotten=forgotten, gained=tuple(dict.fromkeys(gained)))


def operate(net: nn.Module, parent: nn.Module, plan: Plan, means: Named | None = None) -> Carried:
    """Load what `parent` knows into `net`, freshly made, whose own initialisation is what new units start from.

    means: by first layer of the parent, the mean (I,) of each of its inputs: see `input_means`. What an input that is
    dropped contributed on average goes into the bias.
    """
    old = parent.state_dict()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for name, piece in plan.pieces.items():
        module = net.get_submodule(name.rpartition(".")[0])
        start = state[name]
        if isinstance(module, nn.Linear | _ConvNd) and start.dim() > 1:
            start[_at(piece.index[0])] = 0.0
        state[name] = placed(piece, old[piece.old], start)
        _start_new_rows(net, name, piece, state[name])
    for source, columns in plan.forgotten.items():
        heir = next(n for n, p in plan.pieces.items() if p.old == source)
        shift = heir.removesuffix("weight") + "bias"
        if means is not None and columns and shift in plan.pieces:
            gone = torch.tensor(sorted(columns))
            lost = old[source][:, gone] @ means[source][gone]
            rows = plan.pieces[heir].index[0]
            state[shift][_at(rows)] += lost[[i for i in rows if i >= 0]]
    for name, width in plan.identity.items():
        weight = state[f"{name}.weight"]
        weight[:width] = torch.eye(width, weight.shape[1], dtype=weight.dtype)
        if f"{name}.bias" in state:
            state[f"{name}.bias"][:width] = 0.0
    net.load_state_dict(state)
    blocks = tuple(_silence_new_blocks(net, plan))
    return _record(parent, net, plan, (*plan.identity, *blocks))


def placed(piece: Piece, old: Tensor, fill: Tensor) -> Tensor:
    """`fill` with the entries that `piece` takes from `old` in their new places.

    >>> piece = Piece(old="layer.weight", index=((0, -1), (-1, 1)))
    >>> placed(piece, torch.tensor([[1.0, 2.0]]), torch.zeros(2, 2))
    tensor([[0., 2.],
            [0., 0.]])
    """
    if piece.index == tuple(tuple(range(size)) for size in old.shape):
        return old.clone()
    result = fill.clone()
    for dim, along in enumerate(piece.index):
        old = old.index_select(dim, torch.tensor([i for i in along if i >= 0], dtype=torch.int64))
    result[torch.meshgrid(*map(_at, piece.index), indexing="ij")] = old.to(result.dtype)
    return result


def carry(plan: Plan, tensors: Named, like: Named, fill: Named | None = None) -> dict[str, Tensor]:
    """What goes with the parent's parameters (Fisher, anchor) for the new ones, shaped as those of `like`. New entries
    are those of `fill`, or 0; parameters that are new altogether are left out."""
    found: dict[str, Tensor] = {}
    for name, piece in plan.pieces.items():
        if piece.old in tensors and name in like:
            value = tensors[piece.old]
            start = fill[name].detach() if fill else torch.zeros(like[name].shape, dtype=value.dtype)
            found[name] = placed(piece, value, start)
    return found


def carry_optimizer(plan: Plan, tensors: Named, like: Named) -> dict[str, Tensor]:
    """The same for an optimizer's state by slot and parameter, such as `exp_avg/head.weight`; its counts of steps
    are kept."""
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        slots.setdefault(slot, {})[name] = value
    found: dict[str, Tensor] = {}
    for slot, named in slots.items():
        scalars = {n: named[p.old].clone() for n, p in plan.pieces.items() if p.old in named and not named[p.old].dim()}
        arrays = carry(plan, {n: v for n, v in named.items() if v.dim()}, like)
        found |= {f"{slot}/{name}": value for name, value in {**scalars, **arrays}.items()}
    return found


def input_means(parent: nn.Module, inputs: Named, plan: Plan) -> dict[str, Tensor]:
    """Mean of each input of the parent's layers that lose some, over the rows of `inputs`."""
    means: dict[str, Tensor] = {}
    hooks = [
        parent.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
            lambda _, given, name=name: means.__setitem__(name, given[0].mean(0))
        )
        for name, columns in plan.forgotten.items()
        if columns
    ]
    try:
        _outputs(parent, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return means


def largest_difference(parent: nn.Module, net: nn.Module, old: Named, new: Named) -> float:
    """Largest absolute difference of the outputs, of those that the parent has, for the same rows as each model's
    encoder sees them. Both are put in eval mode."""
    theirs, ours = _outputs(parent, old), _outputs(net, new)
    return (ours[..., : theirs.shape[-1]] - theirs).abs().max().item()


def columns_axes(net: ColumnsNet, encoder: Encoding) -> dict[str, Axes]:
    """What stands for what in a model of ours. An input is the same one if it was encoded the same way; its number and
    its bins are therefore known by their statistics too. What joins the columns (of an image or a text) is in front of
    them, and known by its place."""
    first = "body.0" if isinstance(net, TabularNet) and len(net.body) else "head"
    front = net.get_parameter(f"{first}.weight").shape[1] - net.width
    scale = {c.name: (c.mean, c.std, c.low, c.high) for c in encoder.numeric}
    inputs: list[Hashable] = [("place", i) for i in range(front)]
    inputs += [("number", c.name, *scale[c.name]) for c in encoder.numeric]
    inputs += [("null", c.name) for c in encoder.numeric if c.nullable]
    inputs += [("bin", c.name, *bin_, *scale[c.name]) for c in encoder.numeric for bin_ in pairwise(c.edges)]
    axes: dict[str, Axes] = {}
    for i, column in enumerate(encoder.categorical):
        name = f"embeddings.{i}.weight"
        axes[name] = Axes(parameter=("embedding", column.name), rows=[*range(FIRST), *column.categories])
        inputs += [("embedding", column.name, d) for d in range(net.get_parameter(name).shape[1])]
    classes = list(encoder.classes) if len(encoder.classes) == net.head.out_features else None
    axes["head.bias"] = Axes(rows=classes)
    axes["head.weight"] = Axes(rows=classes)
    axes[f"{first}.weight"] = Axes(rows=classes if first == "head" else None, columns=inputs)
    return axes


def _axes(net: nn.Module, encoder: Encoding | None) -> Mapping[str, Axes]:
    if encoder is None:
        return {}
    if isinstance(net, ColumnsNet):
        return columns_axes(net, encoder)
    return net.axes(encoder) if hasattr(net, "axes") else {}  # type: ignore[operator]


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers in the order of the state dict, less those that follow from the encoder."""
    skipped = {f"{n}." for n, m in net.named_modules() if isinstance(m, PiecewiseLinear)}
    return {n: v for n, v in net.state_dict().items() if not n.startswith(tuple(skipped))}


def _check_names(names: Mapping[str, str | None], ours: Named, theirs: Named) -> None:
    for owner, given, there in (("new model", list(names), ours), ("parent", [v for v in names.values() if v], theirs)):
        if unknown := sorted(g for g in given if not any(n == g or n.startswith(f"{g}.") for n in there)):
            raise UpdateError(
                f"transfer.names has {', '.join(unknown)}, which the {owner} lacks; it has {', '.join(there)}"
            )


def _indices(module: nn.Module, old: torch.Size, new: torch.Size, was: Axes, now: Axes) -> tuple[Index, ...] | None:
    """Where the entries come from, or None where the parameter does not fit."""
    if len(old) != len(new):
        return None
    labels = [(was.rows, now.rows), (was.columns, now.columns)]
    growing = 2 if isinstance(module, nn.Linear | nn.Embedding | _ConvNd) else 1
    if isinstance(module, nn.MultiheadAttention):
        growing = 0  # its rows are those of queries, keys and values, one after another
    found: list[Index] = []
    for dim, (a, b) in enumerate(zip(old, new, strict=True)):
        before, after = labels[dim] if dim < len(labels) else (None, None)
        if (before is None) != (after is None):
            return None
        if before is not None and after is not None:
            places = {label: i for i, label in enumerate(before)}
            found.append(tuple(places.get(label, -1) for label in after))
        elif a == b or (a < b and dim < growing):
            found.append((*range(a), *[-1] * (b - a)))
        else:
            return None
    return tuple(found)


def _start_new_rows(net: nn.Module, name: str, piece: Piece, value: Tensor) -> None:
    """Rows that are new start where the model says, as when a vocabulary grows."""
    new = torch.tensor([i for i, j in enumerate(piece.index[0]) if j < 0]) if piece.index else torch.empty(0)
    say = getattr(net, "new_rows", lambda *given: new_rows(net, *given))
    if len(new) and (rows := say(name, value[_at(piece.index[0])], len(new))) is not None:
        value[new] = rows


def _silence_new_blocks(net: nn.Module, plan: Plan) -> Iterator[str]:
    """New residual blocks add nothing at first. A block of one's own says how in `start_as_identity()`."""
    for name, block in net.named_modules():
        if any(f"{name}.{n}" in plan.pieces for n, _ in block.named_parameters()):
            continue
        if hasattr(block, "start_as_identity"):
            block.start_as_identity()  # type: ignore[operator]
        elif isinstance(block, EncoderLayer):
            _silence(block.out, block.down)
        elif isinstance(block, nn.TransformerEncoderLayer) and block.norm_first:
            _silence(block.self_attn.out_proj, block.linear2)
        else:
            continue
        yield name


def _silence(*layers: nn.Linear) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def _record(parent: nn.Module, net: nn.Module, plan: Plan, identity: tuple[str, ...]) -> Carried:
    theirs, ours = _tensors(parent), _tensors(net)
    heirs = {piece.old for piece in plan.pieces.values()}
    passing = tuple(f"{name}." for name in identity)
    return Carried(
        whole=tuple(n for n, p in plan.pieces.items() if p.whole),
        grown=tuple(
            f"{n} {tuple(theirs[p.old].shape)} -> {tuple(ours[n].shape)}" for n, p in plan.pieces.items() if not p.whole
        ),
        identity=identity,
        new=(*(n for n in ours if n not in plan.pieces and not n.startswith(passing)), *plan.gained),
        dropped=(
            *(n for n in theirs if n not in heirs),
            *(
                f"part of {p.old}"
                for p in plan.pieces.values()
                if p.old not in plan.forgotten and p.lost(theirs[p.old].shape)
            ),
            *(dict.fromkeys(text for columns in plan.forgotten.values() for text in columns.values())),
        ),
    )


def _outputs(net: nn.Module, inputs: Named) -> Tensor:
    with torch.inference_mode():
        return net.eval()(**inputs)


def _at(along: Index) -> Tensor:
    """The places that are not new."""
    return torch.tensor([i for i, j in enumerate(along) if j >= 0], dtype=torch.int64)


def _text(label: Hashable) -> str:
    kind, name = label[:2] if isinstance(label, tuple) else ("input", label)
    return f"{kind} of {name}"


def _shapes(tensors: Named) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
