"""What a model iteration carries over: outputs before training are the parent's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import nn

from cltrain.data.encoder import Encoder, NumericColumn, fit_encoder
from cltrain.data.schema import Columns, Feature, Schema
from cltrain.errors import UpdateError
from cltrain.models.alignment import align
from cltrain.models.iteration import difference
from cltrain.models.surgery import (
    Piece,
    carry,
    carry_optimizer,
    input_means,
    largest_difference,
    operate,
    placed,
    plan_surgery,
)
from cltrain.models.tabular import TabularNet
from cltrain.models.text import TextTransformer
from cltrain.records import LABEL

KINDS = {"x": "numeric", "z": "numeric", "wind": "numeric", "shop": "categorical", "carrier": "categorical"}


def schema(*names: str, task: str = "binary") -> Schema:
    features = tuple(Feature(name=n, kind=KINDS[n]) for n in names)  # type: ignore[arg-type]
    return Schema(columns=Columns(event_time="when", label="y", task=task), features=features)


def table(rows: int = 300, seed: int = 0, shops: str = "abc") -> pa.Table:
    generator = np.random.default_rng(seed)
    values: dict[str, Any] = {n: generator.normal(size=rows) for n in ("x", "z", "wind")}
    values |= {"shop": generator.choice(list(shops), rows), "carrier": generator.choice(list("UVW"), rows)}
    return pa.table(values | {LABEL: (values["x"] > 0).astype(np.float64)})


def net(encoder: Encoder, seed: int, hidden: tuple[int, ...] = (16, 8), **settings: Any) -> TabularNet:
    torch.manual_seed(seed)
    return TabularNet(encoder.spec, hidden=hidden, embedding_dim=settings.pop("embedding_dim", 2), **settings)


def operated(old: nn.Module, new: nn.Module, a: Encoder, b: Encoder, rows: pa.Table) -> float:
    operate(new, old, plan_surgery(old, new, a, b))
    return largest_difference(old, new, a(rows).inputs, b(rows).inputs)


ENCODER = fit_encoder(table(), schema("x", "z", "shop"))


@pytest.mark.parametrize(
    ("hidden", "settings"),
    [
        ((32, 8), {}),
        ((16, 24), {}),
        ((64, 64), {"embedding_dim": 5}),
        ((16, 8, 8), {}),
        ((16, 16, 8), {}),
        ((20, 30, 25, 40), {"dropout": 0.2}),
    ],
)
def test_wider_and_deeper_nets_answer_as_their_parent(hidden: tuple[int, ...], settings: dict[str, Any]) -> None:
    old, new = net(ENCODER, 1), net(ENCODER, 2, hidden, **settings)
    assert operated(old, new, ENCODER, ENCODER, table(seed=5)) < 1e-5


def test_new_units_and_new_inputs_learn_from_the_first_steps_on() -> None:
    wide = net(ENCODER, 2, (32, 8))
    operate(wide, net(ENCODER, 1), plan_surgery(net(ENCODER, 1), wide, ENCODER, ENCODER))
    batch = ENCODER(table())
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    before = wide.body[0].weight[16:].clone()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(wide(**batch.inputs)[:, 0], batch.target).backward()
        optimizer.step()
    assert (wide.body[2].weight[:, 16:] != 0).any()
    assert (wide.body[0].weight[16:] != before).any()
    assert len(torch.unique(wide.body[0].weight[16:], dim=0)) == 16


def test_columns_are_matched_by_name_wherever_they_are_inserted() -> None:
    """A numeric column in the middle, a categorical one in front, and the old ones in another order."""
    bigger = fit_encoder(table(), schema("wind", "carrier", "shop", "z", "x"))
    by_name = {c.name: c for c in ENCODER.numeric}
    bigger = dataclasses.replace(bigger, numeric=tuple(by_name.get(c.name, c) for c in bigger.numeric))
    old, new = net(ENCODER, 1), net(bigger, 2)
    rows = table(seed=5)
    plan = plan_surgery(old, new, ENCODER, bigger)
    carried = operate(new, old, plan)
    assert largest_difference(old, new, ENCODER(rows).inputs, bigger(rows).inputs) < 1e-5
    assert largest_difference(old, new, ENCODER(rows).inputs, bigger(rows.drop_columns(["wind"])).inputs) < 1e-5
    assert {"number of wind", "bin of wind", "embedding of carrier"} <= set(carried.new)
    assert carried.dropped == ()
    assert plan.pieces["embeddings.1.weight"].old == "embeddings.0.weight"


def test_a_column_that_was_never_null_may_get_its_indicator() -> None:
    nullable = tuple(dataclasses.replace(c, nullable=True) for c in ENCODER.numeric)
    now = dataclasses.replace(ENCODER, numeric=nullable)
    assert operated(net(ENCODER, 1), net(now, 2), ENCODER, now, table(seed=5)) < 1e-5


def test_categories_are_matched_by_name_and_new_ones_start_as_unknown() -> None:
    shops = dataclasses.replace(ENCODER.categorical[0], categories=("new", "c", "b"))
    now = dataclasses.replace(ENCODER, categorical=(shops,))
    old, new = net(ENCODER, 1), net(now, 2)
    carried = operate(new, old, plan_surgery(old, new, ENCODER, now))
    rows = table(seed=5, shops="bc")
    assert largest_difference(old, new, ENCODER(rows).inputs, now(rows).inputs) < 1e-5
    stranger = table(seed=5, shops=["new"])  # type: ignore[arg-type]
    assert largest_difference(old, new, ENCODER(stranger).inputs, now(stranger).inputs) < 1e-5
    assert carried.dropped == ("part of embeddings.0.weight",)


def test_classes_are_matched_by_name() -> None:
    rows = table()
    labels = pa.array(np.resize(["late", "early", "on time"], rows.num_rows))
    rows = rows.set_column(rows.column_names.index(LABEL), LABEL, labels)
    a = fit_encoder(rows, schema("x", "shop", task="multiclass"))
    b = dataclasses.replace(a, classes=("on time", "cancelled", "early", "late"))
    old, new = net(a, 1), net(b, 2, (32, 8))
    operate(new, old, plan_surgery(old, new, a, b))
    with torch.no_grad():
        before, after = old(**a(rows).inputs), new(**b(rows).inputs)
    for name in a.classes:
        torch.testing.assert_close(after[:, b.classes.index(name)], before[:, a.classes.index(name)])


def test_what_a_dropped_feature_said_on_average_goes_into_the_bias() -> None:
    """Of a linear model the mean output stays as it was."""
    a = fit_encoder(table(), schema("x", "z", "shop"))
    b = dataclasses.replace(a, numeric=a.numeric[:1], categorical=())
    rows = table(seed=5)
    means = []
    for fold in (False, True):
        old, new = net(a, 1, hidden=()), net(b, 2, hidden=())
        plan = plan_surgery(old, new, a, b)
        carried = operate(new, old, plan, input_means(old, a(rows).inputs, plan) if fold else None)
        with torch.no_grad():
            means.append((new(**b(rows).inputs).mean() - old(**a(rows).inputs).mean()).abs().item())
    assert means[1] < 1e-5 < means[0]
    assert carried.dropped == ("embeddings.0.weight", "number of z", "bin of z", "embedding of shop")


def test_an_encoding_that_changed_counts_as_another_input() -> None:
    again = dataclasses.replace(ENCODER.numeric[0], mean=3.0)
    now = dataclasses.replace(ENCODER, numeric=(again, ENCODER.numeric[1]))
    old, new = net(ENCODER, 1), net(now, 2)
    carried = operate(new, old, plan_surgery(old, new, ENCODER, now))
    assert "number of x" in carried.new
    assert "number of x" in carried.dropped
    assert largest_difference(old, new, ENCODER(table()).inputs, now(table()).inputs) > 1e-3


def test_the_record_says_what_became_of_every_parameter() -> None:
    old, new = net(ENCODER, 1), net(ENCODER, 2, (32, 32, 8))
    carried = operate(new, old, plan_surgery(old, new, ENCODER, ENCODER))
    assert carried.whole == ("embeddings.0.weight", "body.4.bias", "head.weight", "head.bias")
    inputs = new.body[0].in_features
    assert carried.grown == (
        f"body.0.weight (16, {inputs}) -> (32, {inputs})",
        "body.0.bias (16,) -> (32,)",
        "body.4.weight (8, 16) -> (8, 32)",
    )
    assert (carried.identity, carried.new, carried.dropped) == (("body.2",), (), ())


def test_a_plan_places_what_goes_with_parameters() -> None:
    piece = Piece(old="w", index=((-1, 0), (1, -1, 0)))
    old = torch.tensor([[1.0, 2.0]])
    assert placed(piece, old, torch.zeros(2, 3)).tolist() == [[0, 0, 0], [2, 0, 1]]
    parent, wide = nn.Sequential(nn.Linear(2, 1), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    plan = plan_surgery(parent, wide)
    like = dict(wide.named_parameters())
    fisher = {"0.weight": torch.tensor([[3.0, 4.0]]), "0.bias": torch.tensor([5.0])}
    found = carry(plan, fisher, like)
    assert found["0.weight"].tolist() == [[3, 4], [0, 0]]
    assert found["0.bias"].tolist() == [5, 0]
    anchor = carry(plan, fisher, like, fill=like)
    assert anchor["0.weight"][1].equal(wide[0].weight[1].detach())
    assert not anchor["0.weight"].requires_grad
    moments = {"exp_avg/0.weight": fisher["0.weight"], "step/0.weight": torch.tensor(7.0)}
    state = carry_optimizer(plan, moments, like)
    assert state["step/0.weight"] == 7
    assert state["exp_avg/0.weight"].tolist() == [[3, 4], [0, 0]]


@pytest.mark.parametrize("last", [nn.Linear(8, 3), nn.ReLU()])
def test_a_perceptron_of_ones_own_is_deepened_in_the_middle(last: nn.Module) -> None:
    old = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *([] if isinstance(last, nn.ReLU) else [last]))
    new = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU())
    if isinstance(last, nn.Linear):
        new.append(nn.Linear(9, 3))
    plan = plan_surgery(old, new)
    operate(new, old, plan)
    x = torch.randn(20, 4)
    torch.testing.assert_close(new(x)[:, : old(x).shape[1]], old(x))


class Pictures(nn.Module):
    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.hidden = nn.Linear(channels * 16, units)
        self.head = nn.Linear(units, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        seen = torch.relu(self.norm(self.conv(image))).flatten(1)
        return self.head(torch.relu(self.hidden(seen)))


def test_a_wider_cnn_answers_as_its_parent_with_its_running_statistics() -> None:
    old, new = Pictures(4, 10), Pictures(7, 16)
    images = {"image": torch.randn(12, 1, 4, 4)}
    for _ in range(3):
        old(torch.randn(12, 1, 4, 4) * 3 + 1)
    operate(new, old, plan_surgery(old, new))
    assert largest_difference(old, new, images, images) < 1e-5
    assert new.norm.running_mean is not None
    assert new.norm.running_mean[:4].equal(old.norm.running_mean)  # type: ignore[arg-type]


class Words(nn.Module):
    def __init__(self, layers: int, feedforward: int = 16, vocabulary: int = 11) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, feedforward, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = self.embedding(tokens)
        for layer in self.layers:
            seen = layer(seen)
        return self.head(seen.mean(1))


def test_a_transformer_gets_blocks_that_add_nothing_at_first() -> None:
    old, new = Words(2), Words(3, feedforward=24, vocabulary=15)
    tokens = {"tokens": torch.randint(0, 11, (6, 5))}
    carried = operate(new, old, plan_surgery(old, new))
    assert carried.identity == ("layers.2",)
    assert largest_difference(old, new, tokens, tokens) < 1e-5


def test_our_transformer_grows_in_layers_and_in_columns() -> None:
    rows = table(60)
    words = pa.array(["the flight is late", "on time", "cancelled"] * 20)
    rows = rows.append_column("words", words)
    text = Feature(name="words", kind="text")
    columns = schema("x", "shop").columns
    a = fit_encoder(rows, Schema(columns=columns, features=(*schema("x", "shop").features, text)))
    b = fit_encoder(rows, Schema(columns=columns, features=(*schema("wind", "x", "carrier", "shop").features, text)))
    torch.manual_seed(0)
    old, new = TextTransformer(a.spec, dim=8, heads=2, layers=1), TextTransformer(b.spec, dim=8, heads=2, layers=3)
    carried = operate(new, old, plan_surgery(old, new, a, b))
    assert carried.identity == ("layers.1", "layers.2")
    assert largest_difference(old, new, a(rows).inputs, b(rows).inputs) < 1e-5


def test_names_say_what_continues_what() -> None:
    old, new = Words(1), nn.ModuleDict({"words": nn.Embedding(11, 8), "out": nn.Linear(8, 2)})
    plan = plan_surgery(old, new, names={"words": "embedding", "out.weight": "head.weight"})
    carried = operate(new, old, plan)
    assert carried.whole == ("words.weight", "out.weight")
    assert carried.new == ("out.bias",)
    assert new["out"].weight.equal(old.head.weight)
    with pytest.raises(UpdateError, match=r"transfer\.names has tokens, which the parent lacks; it has embedding"):
        plan_surgery(old, new, names={"words": "tokens"})


def test_a_block_may_be_inserted_in_front_of_others() -> None:
    old, new = Words(2), Words(3)
    tokens = {"tokens": torch.randint(0, 11, (6, 5))}
    carried = operate(new, old, plan_surgery(old, new, names={"layers.2": "layers.1", "layers.1": None}))
    assert carried.identity == ("layers.1",)
    assert largest_difference(old, new, tokens, tokens) < 1e-5


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    old = net(ENCODER, 1)
    with pytest.raises(UpdateError, match=r"body had hidden layers of \[16, 8\] units and is to have \[8\]"):
        plan_surgery(old, net(ENCODER, 2, (8,)), ENCODER, ENCODER)
    linear = net(ENCODER, 1, hidden=())
    deep = net(ENCODER, 2, hidden=(64,))
    carried = operate(deep, linear, plan_surgery(linear, deep, ENCODER, ENCODER))
    assert "head.weight" in carried.new, "its inputs are units now, and were columns"
    with pytest.raises(UpdateError, match=r"nothing of the parent fits.*embedding\.weight \(11, 8\)"):
        plan_surgery(Words(1), Pictures(4, 10))


def test_both_models_are_left_as_they_were_by_a_plan() -> None:
    old, new = net(ENCODER, 1), net(ENCODER, 2, (32, 8))
    before = {n: v.clone() for n, v in old.state_dict().items()}
    operate(new, old, plan_surgery(old, new, ENCODER, ENCODER))
    assert all(v.equal(before[n]) for n, v in old.state_dict().items())


def test_align_prefers_fewer_new_units() -> None:
    assert align([8], [8, 8, 8]) == (0,)
    assert align([8, 4], [8, 8, 4, 4]) == (0, 2)
    assert align([8, 4], [16, 4, 8]) == (0, 1)
    assert align([8, 4], [4, 8]) is None
    assert align([], [8]) is None


def test_a_data_iteration_is_told_from_a_model_iteration() -> None:
    model = {"_target_": "cltrain.models.TabularNet", "name": "a", "hidden": [64, 32]}
    features = schema("x", "z", "shop").features
    grown = ENCODER.extended(table(shops="abcde"))
    assert difference(model, model | {"name": "b", "hidden": (64, 32)}, ENCODER, grown, features, features) == []
    wider = model | {"hidden": [128, 32]}
    assert difference(model, wider, ENCODER, grown) == ["model.hidden was [64, 32] and is [128, 32]"]
    assert difference(model, model | {"_target_": "mine.Net"}, ENCODER, ENCODER) == [
        "model._target_ was cltrain.models.TabularNet and is mine.Net"
    ]
    more = schema("x", "shop", "wind").features
    assert difference(model, model, ENCODER, ENCODER, features, more) == [
        "numeric feature wind is new",
        "numeric feature z is gone",
    ]
    turned = (Feature(name="x", kind="categorical"), *features[1:])
    assert difference(model, model, ENCODER, ENCODER, features, turned) == ["feature x was numeric and is categorical"]
    refitted = fit_encoder(table(seed=9, shops="bcd"), schema("x", "z", "shop"))
    said = difference(model, model, ENCODER, refitted)
    assert said[0] == "the way in which x is encoded changed"
    assert said[-1] == "categories of shop were removed or have another order"


def test_the_tables_of_these_tests_have_no_nulls() -> None:
    assert all(isinstance(c, NumericColumn) and not c.nullable for c in ENCODER.numeric)
    assert pc.sum(pc.is_null(table().column("x"))).as_py() == 0
