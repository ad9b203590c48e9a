"""Where a training begins: from nothing, from a parent, or from a parent of another architecture."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from torch import Tensor, nn

from cltrain.data.encoder import Encoder, fit_encoder
from cltrain.data.schema import Schema
from cltrain.errors import UpdateError
from cltrain.methods import MethodState
from cltrain.methods.base import Named
from cltrain.models.adapter import LoRA, NoAdapter, adapt
from cltrain.models.build import build_model
from cltrain.models.growth import copied, forgotten, grow_into, grown, padded, restarted, table_rows
from cltrain.models.iteration import difference
from cltrain.models.surgery import (
    Carried,
    carry,
    carry_optimizer,
    input_means,
    largest_difference,
    operate,
    plan_surgery,
)
from cltrain.train.state import State

ANCHORS = {"anchor", "root"}  # slots of what a parameter was, not of what it weighs
PROBE_ROWS = 1_024
SAME = 1e-5

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A model before its first step, on the CPU. `optimizer` and `remembered` are the parent's, for this model. `knew`:
    the number of outputs that the parent had. `base`: the weights under an adapter, without which it was made."""

    net: nn.Module
    encoder: Encoder
    remembered: MethodState = field(default_factory=MethodState)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    knew: int | None = None
    base: Mapping[str, Tensor] | None = None
    carried: Carried | None = None


def from_nothing(
    rows: pa.Table, schema: Schema, model: Mapping[str, Any], adapter: LoRA | NoAdapter, encoder: Encoder | None = None
) -> Beginning:
    """Fresh weights, for an encoder that is fitted on `rows` unless one is given. Draws from torch's generator."""
    encoder = encoder or fit_encoder(rows, schema)
    net = build_model(model, encoder.spec)
    if start_at := getattr(net, "start_at", None):
        start_at(encoder.task, encoder(rows).target)
    if not adapter.adapts(stateful=False):
        return Beginning(net=net, encoder=encoder)
    base = {name: value.clone() for name, value in net.state_dict().items()}
    return Beginning(net=adapt(net, adapter), encoder=encoder, base=base)


def from_parent(
    parent: State, rows: pa.Table, schema: Schema, model: Mapping[str, Any], adapter: LoRA | NoAdapter
) -> Beginning:
    """Where `parent` ended, with the categories and classes that `rows` make new: without importance, and anchored
    where they start. Raises `UpdateError` where the parent cannot be continued."""
    if parent.adapter is not None and not adapter.continues(parent.adapter):
        parent = _unadapted(parent)
    encoder = extended(parent.encoder, rows, schema)
    _warn_of_new_columns(parent, schema)
    net = build_model(model, encoder.spec)
    if not getattr(net, "supports_incremental", True):
        raise UpdateError(
            f"{type(net).__name__} says supports_incremental = False: it cannot continue from a parent; train it from "
            "scratch each time with strategy=periodic or method=from_scratch"
        )
    again = table_rows(net, encoder.reused(parent.encoder), encoder.spec.cardinalities)
    weights, base = restarted(parent.weights, again), parent.base
    if not adapter.adapts(stateful=True):
        _grow(net, weights, parent, model, encoder, schema)
    elif parent.adapter is None:
        base = weights
        _grow(net, weights, parent, model, encoder, schema)
        adapt(net, adapter)
    else:
        adapt(net, adapter)
        _grow(net, weights, parent, model, encoder, schema)
    like = {name: p for name, p in net.named_parameters() if p.requires_grad}
    tensors: dict[str, Named] = {}
    for slot, named in parent.method.tensors.items():
        kept = {name: value for name, value in named.items() if name in like}
        if slot in ANCHORS:
            kept = copied(kept, {n: r for n, r in again.items() if n in kept}, {n: like[n].detach() for n in kept})
            tensors[slot] = {n: grown(n, kept[n], p.detach()) if n in kept else p.detach() for n, p in like.items()}
        else:
            tensors[slot] = padded(forgotten(kept, again), like)
    return Beginning(
        net=net,
        encoder=encoder,
        remembered=dataclasses.replace(parent.method, tensors=tensors),
        optimizer=forgotten(parent.optimizer, again),
        knew=parent.encoder.num_outputs,
        base=base,
    )


def by_surgery(
    parent: State, rows: pa.Table, schema: Schema, model: Mapping[str, Any], names: Mapping[str, str | None]
) -> Beginning:
    """What `parent` knows, in a model of another architecture or of other columns: a model iteration. What it had
    encoded is encoded as it was. Raises `UpdateError` when nothing fits."""
    if schema.columns.task != parent.encoder.task:
        raise UpdateError(f"the parent was trained for {parent.encoder.task}, not for {schema.columns.task}")
    encoder = parent.encoder.extended_with(rows, schema)
    net, before = build_model(model, encoder.spec), build_model(parent.model, parent.encoder.spec)
    before.load_state_dict(parent.served_weights)
    plan = plan_surgery(before, net, parent.encoder, encoder, names)
    probe = parent.method.memory if parent.method.memory_rows else rows  # a memory still has the dropped columns
    assert probe is not None
    probe = probe.slice(0, PROBE_ROWS)
    old, new = parent.encoder(probe).inputs, encoder(probe).inputs
    carried = operate(net, before, plan, input_means(before, old, plan))
    carried = dataclasses.replace(carried, difference=largest_difference(before, net, old, new))
    if carried.difference is not None and carried.difference > SAME:
        log.warning(
            "the surgery changed the outputs by up to %.2g; what it dropped: %s",
            carried.difference,
            ", ".join(carried.dropped) or "nothing",
        )
    like = dict(net.named_parameters())
    tensors = {
        slot: carry(plan, named, like, like if slot in ANCHORS else None)
        for slot, named in parent.method.tensors.items()
    }
    for slot in ANCHORS & tensors.keys():
        tensors[slot] = {name: tensors[slot].get(name, p.detach()) for name, p in like.items()}
    return Beginning(
        net=net,
        encoder=encoder,
        remembered=dataclasses.replace(parent.method, tensors=tensors),
        optimizer=carry_optimizer(plan, parent.optimizer, like),
        knew=parent.encoder.num_outputs,
        carried=carried,
    )


def extended(encoder: Encoder, rows: pa.Table, schema: Schema) -> Encoder:
    """The parent's encoder with what `rows` make new. Raises `UpdateError` where they lack what it reads."""
    have = {f.name for f in schema.features}
    if lacking := [name for name in encoder.names if name not in have]:
        raise UpdateError(
            f"the rows lack {', '.join(lacking)}, which the parent was trained on: recalibrate, or carry it over with "
            "python -m jobs.recalibrate transfer=surgery"
        )
    if schema.columns.task != encoder.task:
        raise UpdateError(f"the parent was trained for {encoder.task}, not for {schema.columns.task}: recalibrate")
    return encoder.extended(rows)


def _unadapted(parent: State) -> State:
    """The same version as a whole model, for an adapter of other settings or for none."""
    return dataclasses.replace(
        parent,
        weights=parent.served_weights,
        base=None,
        adapter=None,
        optimizer={name: value for name, value in parent.optimizer.items() if ".lora_" not in name},
        method=dataclasses.replace(
            parent.method,
            tensors={
                slot: {name: value for name, value in named.items() if ".lora_" not in name}
                for slot, named in parent.method.tensors.items()
            },
        ),
    )


def _warn_of_new_columns(parent: State, schema: Schema) -> None:
    known = {f.name for f in parent.schema.features}
    if fresh := [f.name for f in schema.features if f.name not in known]:
        log.warning(
            "%s came after the last training from scratch, and a stateful update does not read it: python -m "
            "jobs.recalibrate transfer=surgery adds it to the model",
            ", ".join(fresh[:5]),
        )


def _grow(
    net: nn.Module,
    weights: Mapping[str, Tensor],
    parent: State,
    model: Mapping[str, Any],
    encoder: Encoder,
    schema: Schema,
) -> None:
    """Load the weights; a model iteration is told in the words of its settings."""
    try:
        grow_into(net, weights)
    except UpdateError as error:
        features = parent.schema.features, schema.features
        changed = difference(parent.model, model, parent.encoder, encoder, *features)
        said = f"{'; '.join(changed)}: " if changed else ""
        raise UpdateError(
            f"{said}{error}; python -m jobs.recalibrate transfer=surgery carries over what the parent knows"
        ) from error
