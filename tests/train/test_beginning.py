"""Where a training begins: surgery on the parent, and adapters over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cltrain.data.schema import Feature, Schema
from cltrain.errors import UpdateError
from cltrain.methods import EWC, L2SP, SI, Combined, LwF, Method, Replay
from cltrain.models.adapter import LoRA
from cltrain.storage import Storage
from cltrain.train.beginning import by_surgery
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from cltrain.train.state import State, load_state, save_state
from tests.train.made import MODEL, TRAINING, assert_same, events, schema, tensors, update

pytest.importorskip("peft")
BIGGER = MODEL | {"hidden": [16, 8]}
REPLAY_EWC = Combined(parts={"replay": Replay(), "ewc": EWC()})
LONG = Training(batch_size=16, learning_rate=1e-2, epochs=8)
LORA = LoRA(rank=2)


def outputs(state: State, rows: pa.Table) -> np.ndarray:
    return Predictor.of(state).outputs(rows)[0].numpy()


def test_another_architecture_is_refused_in_the_words_of_its_settings() -> None:
    parent = update(events(150)).state
    with pytest.raises(UpdateError, match=r"model\.hidden was \[8\] and is \[16, 8\].*transfer=surgery"):
        update(events(60, seed=1), parent, model=BIGGER)


@pytest.mark.parametrize("method", [REPLAY_EWC, SI(), LwF(strength=0.1)], ids=["replay_ewc", "si", "lwf"])
def test_surgery_carries_over_what_the_parent_knows(method: Method) -> None:
    parent = update(events(200), None, method, LONG).state
    begun = by_surgery(parent, events(60, seed=1), schema(), BIGGER, {})
    assert begun.carried is not None
    assert begun.carried.difference is not None
    assert begun.carried.difference < 1e-5
    trained = update(events(60, seed=1), parent, method, TRAINING, model=BIGGER, transfer={})
    assert trained.carried is not None
    assert trained.carried.identity or trained.carried.grown
    state = trained.state
    assert state.model["hidden"] == [16, 8]
    for named in state.method.tensors.values():
        assert all(value.shape == state.weights[name].shape for name, value in named.items())
    if method is REPLAY_EWC:
        assert state.method.memory_rows == 260
    assert update(events(60, seed=2), state, method, model=BIGGER).steps > 0


def test_surgery_adds_a_feature() -> None:
    """The new column says it all; before training it changes nothing."""
    parent = update(events(200), None, REPLAY_EWC, LONG).state
    rows = events(200, seed=1, turn=1.0)
    score = np.random.default_rng(0).normal(size=200) * 0.1 + rows.column("_label").to_numpy()
    rows = rows.append_column("sensor", pa.array(score))
    wider = Schema(columns=schema().columns, features=(*schema().features, Feature(name="sensor", kind="numeric")))
    begun = by_surgery(parent, rows, wider, MODEL, {})
    assert begun.carried is not None
    assert begun.carried.difference == pytest.approx(0, abs=1e-5)
    assert any("sensor" in name for name in begun.carried.new)
    child = update(rows, parent, REPLAY_EWC, LONG, model=MODEL, described=wider, transfer={}).state
    assert Predictor.of(child).score(rows).losses.mean() < 0.5 * Predictor.of(parent).score(rows).losses.mean()
    assert {"sensor", "x"} <= set(child.method.memory.column_names)


def test_an_adapter_leaves_the_base_and_stores_little(tmp_path: Path) -> None:
    big = MODEL | {"hidden": [128, 128]}
    storage = Storage(tmp_path)
    parent = update(events(200), None, REPLAY_EWC, model=big).state
    child = update(events(100, seed=1, turn=1.0), parent, REPLAY_EWC, LONG, model=big, adapter=LORA).state
    assert child.base is not None
    assert all(torch.equal(value, parent.weights[name]) for name, value in child.base.items())
    digests = [save_state(state, storage, f"states/{i}") for i, state in enumerate((parent, child))]
    assert digests[0] != digests[1]
    whole, small = (len(storage.read(f"states/{i}/weights.safetensors")) for i in range(2))
    assert small < 0.15 * whole
    loaded = load_state(storage, "states/1")
    assert_same(child, loaded)
    assert np.array_equal(
        outputs(child, events(50)), outputs(load_state(storage, "states/1", only_weights=True), events(50))
    )
    grandchild = update(events(100, seed=2, turn=1.0), loaded, REPLAY_EWC, LONG, model=big, adapter=LORA).state
    save_state(grandchild, storage, "states/2")
    assert len(storage.names("bases")) == 1, "stored once for both"
    asked = events(300, seed=9, turn=1.0)
    losses = [Predictor.of(s).score(asked).losses.mean() for s in (parent, child, grandchild)]
    assert losses[2] < losses[1] < losses[0]


def test_a_base_that_was_altered_is_refused(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    parent = update(events(60)).state
    save_state(update(events(60, seed=1), parent, adapter=LORA).state, storage, "states/1")
    name = storage.names("bases")[0]
    storage.write(name, storage.read(name)[:-4] + b"oops")
    with pytest.raises(Exception, match="was altered"):
        load_state(storage, "states/1")


def test_from_an_adapter_back_to_the_whole_model() -> None:
    parent = update(events(100), None, REPLAY_EWC).state
    adapted = update(events(60, seed=1), parent, REPLAY_EWC, adapter=LORA).state
    rate = Training(batch_size=16, learning_rate=1e-12, optimizer="sgd")
    whole = update(events(60, seed=2), adapted, REPLAY_EWC, rate).state
    assert whole.adapter is None
    assert whole.weights.keys() == parent.weights.keys()
    assert outputs(whole, events(50)) == pytest.approx(outputs(adapted, events(50)), abs=1e-5)


def test_vocabulary_and_classes_grow_under_an_adapter() -> None:
    lora = LoRA(rank=2, also=("embeddings",))
    parent = update(events(100, "multiclass"), None, REPLAY_EWC, task="multiclass").state
    for seed, classes in ((1, "0123"), (2, "01234")):
        rows = events(80, "multiclass", seed=seed, shops="cde", classes=list(classes))
        parent = update(rows, parent, REPLAY_EWC, task="multiclass", adapter=lora).state
    assert outputs(parent, events(10, "multiclass")).shape == (10, 5)
    assert parent.base is not None


def test_a_model_with_weights_of_its_own_is_adapted_from_the_start() -> None:
    always = LoRA(rank=2, freeze="always")
    root = update(events(100), None, REPLAY_EWC, adapter=always)
    assert root.state.base is not None
    assert root.parameters < sum(v.numel() for v in root.state.base.values())
    child = update(events(60, seed=1), root.state, REPLAY_EWC, adapter=always)
    assert child.parameters == root.parameters
    assert set(tensors(child.state)) >= {"fisher/head.weight", "anchor/head.weight"}


@pytest.mark.parametrize("other", [LoRA(rank=2, alpha=64.0), LoRA(rank=3), LoRA(rank=2, targets=("body.0",)), None])
def test_an_adapter_of_other_settings_changes_no_output_at_first(other: LoRA | None) -> None:
    parent = update(events(100), None, REPLAY_EWC).state
    adapted = update(events(60, seed=1), parent, REPLAY_EWC, LONG, adapter=LORA).state
    still = Training(batch_size=16, learning_rate=1e-12, optimizer="sgd")
    child = update(events(60, seed=2), adapted, REPLAY_EWC, still, adapter=other).state
    assert outputs(child, events(50)) == pytest.approx(outputs(adapted, events(50)), abs=1e-5)


@pytest.mark.parametrize("names", [("sgd", "adamw"), ("adamw", "sgd"), ("adamw", "torch.optim.Adagrad")])
def test_another_optimizer_starts_afresh(names: tuple[str, str]) -> None:
    first, second = (Training(batch_size=16, learning_rate=1e-3, optimizer=name) for name in names)
    parent = update(events(100), training=first).state
    child = update(events(60, seed=1), parent, training=second).state
    fresh = update(events(60, seed=1), training=second).state
    assert {k.split("/")[0] for k in child.optimizer} == {k.split("/")[0] for k in fresh.optimizer}


def test_a_column_that_came_later_is_named(caplog: pytest.LogCaptureFixture) -> None:
    parent = update(events(100)).state
    wider = Schema(columns=schema().columns, features=(*schema().features, Feature(name="sensor", kind="numeric")))
    rows = events(60, seed=1).append_column("sensor", pa.array(np.ones(60)))
    update(rows, parent, described=wider)
    assert "sensor came after" in caplog.text
    assert "transfer=surgery" in caplog.text


def test_an_anchor_is_there_for_every_parameter_after_surgery() -> None:
    """A piece of an engine may hold several parameters: those without an anchor would be pulled to 0."""
    parent = update(events(100), None, L2SP()).state
    begun = by_surgery(parent, events(60, seed=1), schema(), MODEL | {"hidden": [8, 8]}, {})
    assert begun.remembered.tensors["anchor"].keys() == dict(begun.net.named_parameters()).keys()
