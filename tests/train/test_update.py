"""The update: repeatable, leaves its parent alone, grows, and survives tables at the edge."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from cltrain.errors import UpdateError
from cltrain.evaluate.metrics import MetricSums
from cltrain.memory import Reservoir
from cltrain.methods import EWC, Combined, Finetune, Replay
from cltrain.records import LABEL
from cltrain.storage import Storage
from cltrain.task import predictions
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from cltrain.train.state import State, load_state, save_state
from tests.train.made import MODEL, assert_same, events, relabelled, schema, tensors, update

BOTH = Combined(parts={"replay": Replay(), "ewc": EWC(fisher_rows=50)})
ROOT = Path(__file__).resolve().parents[2]


def digest(state: State) -> str:
    parts = sorted((n, v.numpy().tobytes()) for n, v in tensors(state).items())
    return hashlib.sha256(b"".join(n.encode() + v for n, v in parts)).hexdigest()


def two_updates() -> State:
    first = update(events(200), method=BOTH).state
    return update(events(120, seed=1, turn=0.5, shops="bcd"), first, BOTH, seed=1).state


def outputs(state: State, table: pa.Table) -> torch.Tensor:
    return Predictor.of(state).outputs(table)[0]


def test_the_same_arguments_give_the_same_bits_here_and_in_another_process() -> None:
    torch.manual_seed(7)
    here = two_updates()
    assert_same(here, two_updates())
    code = "from tests.train.test_update import two_updates, digest; print(digest(two_updates()))"
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest(here)


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    update(events(50))
    assert torch.equal(torch.rand(3), expected)


def test_the_parent_is_left_alone() -> None:
    parent = update(events(200), method=BOTH).state
    before = {name: value.clone() for name, value in tensors(parent).items()}
    memory = parent.method.memory
    child = update(events(120, seed=1), parent, BOTH).state
    assert all(torch.equal(value, before[name]) for name, value in tensors(parent).items())
    assert parent.method.memory is memory
    assert child.steps > parent.steps
    assert child.updates == 1
    shared = {v.data_ptr() for v in tensors(parent).values()} & {v.data_ptr() for v in tensors(child).values()}
    assert not shared


def test_an_update_learns() -> None:
    state = update(events(400), training=Training(batch_size=16, learning_rate=1e-2, epochs=5)).state
    values = MetricSums.of(Predictor.of(state).score(events(400, seed=9))).values()
    assert values["auc"] > 0.9


def test_new_categories_answer_like_the_unknown_one_and_old_rows_as_before() -> None:
    parent = update(events(200)).state
    grown = nothing_learned(parent, events(30, seed=1, shops="ade"))
    assert len(grown.encoder.categorical[0].categories) == 5
    old = events(50, seed=2)
    assert torch.equal(outputs(grown, old), outputs(parent, old))
    new = events(50, seed=3, shops="de")
    assert torch.equal(outputs(grown, new), outputs(parent, new)), "unknown before, new now"


def test_a_new_class_takes_little_from_the_old_ones() -> None:
    parent = update(events(200, "multiclass"), task="multiclass").state
    grown = nothing_learned(parent, events(60, "multiclass", seed=1, classes=["0", "1", "2", "3", "4"]), "multiclass")
    assert grown.encoder.classes[:3] == parent.encoder.classes
    assert set(grown.encoder.classes[3:]) == {"3", "4"}
    before, after = (outputs(s, events(100, "multiclass", seed=2)) for s in (parent, grown))
    assert torch.equal(after[:, :3], before)
    probability = predictions("multiclass", after)
    assert probability[:, 3:].sum(1).max() <= 0.05
    torch.testing.assert_close(
        probability[:, :3] / probability[:, :3].sum(1, keepdim=True), predictions("multiclass", before)
    )


def test_a_new_class_is_learned() -> None:
    parent = update(events(200, "multiclass"), task="multiclass").state
    rows = events(400, "multiclass", seed=1, classes=["0", "1", "2", "3"])
    training = Training(batch_size=16, learning_rate=1e-2, epochs=10)
    scores = Predictor.of(update(rows, parent, training=training, task="multiclass").state).score(rows)
    assert (scores.predictions == scores.target)[scores.target == 3].mean() > 0.7


def nothing_learned(parent: State, rows: pa.Table, task: str = "binary") -> State:
    training = Training(batch_size=16, learning_rate=1e-30, weight_decay=0.0, unknown_rate=0.0)
    return update(rows, parent, training=training, task=task).state


def test_moments_fisher_and_anchor_grow_with_their_parameter() -> None:
    parent = update(events(200), method=BOTH).state
    child = update(events(40, seed=1, shops="de"), parent, BOTH, training=Training(batch_size=16, learning_rate=1e-30))
    name = "embeddings.0.weight"
    before, after = parent.weights[name], child.state.weights[name]
    assert len(after) == len(before) + 2
    old = parent.method.tensors["fisher"][name]
    new = child.state.method.tensors["fisher"][name]
    assert (new[: len(old)] >= 0.9 * old).all()
    assert torch.equal(child.state.method.tensors["anchor"][name], after)
    assert child.state.optimizer[f"exp_avg/{name}"].shape == after.shape
    assert child.state.optimizer[f"step/{name}"] == parent.steps + child.steps


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows_train(task: str, rows: int) -> None:
    table = events(rows, task)
    if task != "regression":
        table = relabelled(table, [str(i % 2) if task == "multiclass" else float(i % 2) for i in range(rows)])
    if task != "regression" and rows == 1:
        with pytest.raises(UpdateError, match="give it a longer window"):
            update(table, task=task)
        return
    parent = update(table, method=BOTH, training=Training(min_steps=10), task=task)
    assert parent.rows_trained == rows * parent.steps
    child = update(events(1, task, seed=1), parent.state, BOTH, task=task)
    assert child.steps == 1
    values = MetricSums.of(Predictor.of(child.state).score(events(20, task, seed=2))).values()
    assert np.isfinite(values["squared_error" if task == "regression" else "log_loss"])


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_window_of_one_class_trains_and_has_no_auc(task: str) -> None:
    parent = update(events(200, task), method=BOTH, task=task).state
    rows = relabelled(events(60, task, seed=1), np.ones(60) if task == "binary" else ["2"] * 60)
    child = update(rows, parent, BOTH, task=task).state
    values = MetricSums.of(Predictor.of(child).score(rows)).values()
    assert np.isfinite(values["log_loss"])
    assert values.get("auc") is None
    with pytest.raises(UpdateError, match="holds only"):
        update(rows, task=task)


@pytest.mark.parametrize("scale", [1e9, 1e-9, 0.0])
def test_regression_at_any_scale(scale: float) -> None:
    training = Training(batch_size=16, learning_rate=1e-2, epochs=8)
    state = update(events(300, "regression", scale=scale), training=training, task="regression", method=BOTH).state
    values = MetricSums.of(Predictor.of(state).score(events(300, "regression", seed=1, scale=scale))).values()
    if scale:
        assert values["r2"] > 0.5
    else:
        assert values["r2"] is None
        assert values["rmse"] < 0.5


def test_rows_without_a_label_are_left_out() -> None:
    rows = events(40)
    some = pa.array([v if i % 2 else None for i, v in enumerate(rows.column(LABEL).to_pylist())], pa.float64())
    trained = update(relabelled(rows, some), method=BOTH)
    assert trained.rows_trained == 20
    assert trained.state.method.memory_rows == 20


@pytest.mark.parametrize("labels", [[], [None] * 5])
def test_no_label_is_an_update_error(labels: list[float]) -> None:
    with pytest.raises(UpdateError, match="no labelled row"):
        update(relabelled(events(len(labels)), labels))


def test_a_loss_that_is_not_finite_is_an_update_error() -> None:
    with pytest.raises(UpdateError, match=r"lower train\.learning_rate"):
        update(events(100, "regression"), task="regression", model=MODEL | {"_target_": f"{__name__}.Exploding"})


class Exploding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1e30))

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        return (numeric[:, :1] * self.weight) ** 2


class Fixed(Exploding):
    supports_incremental = False

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        return numeric[:, :1] * self.weight * 1e-30


def test_a_model_that_cannot_continue_is_refused() -> None:
    model = {"_target_": f"{__name__}.Fixed", "name": "fixed"}
    parent = update(events(50), model=model).state
    with pytest.raises(UpdateError, match="supports_incremental = False"):
        update(events(50), parent, model=model)


def test_another_architecture_is_refused() -> None:
    parent = update(events(50)).state
    with pytest.raises(UpdateError, match=r"was .* and is now .* recalibrate"):
        update(events(50), parent, model=MODEL | {"hidden": [9]})
    with pytest.raises(UpdateError, match="not those of its parent"):
        update(events(50), parent, model=MODEL | {"hidden": [8, 8]})


def test_rows_that_lack_a_column_of_the_parent_are_refused() -> None:
    parent = update(events(50)).state
    less = dataclasses.replace(schema(), features=schema().features[:2])
    with pytest.raises(UpdateError, match="lack shop"):
        update(events(50).drop_columns(["shop"]), parent, described=less)
    with pytest.raises(UpdateError, match="was trained for binary"):
        update(events(50, "regression"), parent, task="regression")


@pytest.mark.parametrize(
    "inert",
    [
        Replay(memory=Reservoir(capacity_rows=0)),
        Replay(ratio=0.0),
        EWC(strength=0.0),
        Combined(parts={"replay": Replay(ratio=0.0), "ewc": EWC(strength=0.0)}),
    ],
    ids=["capacity 0", "ratio 0", "strength 0", "both"],
)
def test_a_method_without_strength_is_bit_equal_to_finetune(inert: Replay | EWC | Combined) -> None:
    training = Training(batch_size=16, learning_rate=1e-2, epochs=2, unknown_rate=0.2)
    ours = theirs = None
    for seed in range(3):
        rows = events(100, seed=seed, turn=seed / 3)
        ours = update(rows, ours, Finetune(), training, seed=seed).state
        theirs = update(rows, theirs, inert, training, seed=seed).state
        assert all(torch.equal(v, theirs.weights[n]) for n, v in ours.weights.items())
        assert all(torch.equal(v, theirs.optimizer[n]) for n, v in ours.optimizer.items())


def test_row_visits_are_counted() -> None:
    parent = update(events(100), method=Replay(ratio=0.5), training=Training(batch_size=20, epochs=3))
    assert (parent.rows_trained, parent.rows_replayed) == (300, 0)
    child = update(events(100, seed=1), parent.state, Replay(ratio=0.5), training=Training(batch_size=20))
    assert child.rows_replayed == sum(round(len(part) * 0.5) for part in torch.arange(100).tensor_split(child.steps))
    assert child.rows_trained == 100 + child.rows_replayed


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    state = update(events(50), model={"_target_": f"{__name__}.Tied", "name": "tied"}).state
    save_state(state, Storage(tmp_path), "states/a")
    assert_same(load_state(Storage(tmp_path), "states/a"), state)


class Tied(nn.Module):
    def __init__(self, num_numeric: int) -> None:
        super().__init__()
        self.a = nn.Linear(num_numeric, num_numeric)
        self.b = nn.Linear(num_numeric, num_numeric)
        self.b.weight = self.a.weight
        self.out = nn.Linear(num_numeric, 1)

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(self.a(numeric)))
