"""Updates in this process, a few rows at a time."""

from __future__ import annotations

import pytest
import torch

from cltrain.errors import ConfigError, UpdateError
from cltrain.methods import AGEM, EWC, SI, Combined, DERpp, Finetune, FromScratch, GDumb, LwF, Method, Replay
from cltrain.methods.base import OUTPUTS
from cltrain.records import EVENT_ID
from cltrain.train.live import Live
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from cltrain.train.step import Rows, Stepper
from tests.train.made import CURSOR, events, relabelled, tensors, update

TRAINING = Training(batch_size=64, learning_rate=1e-2, unknown_rate=0.0)
METHODS: dict[str, Method] = {
    "finetune": Finetune(),
    "replay_ewc": Combined(parts={"replay": Replay(ratio=1.0), "ewc": EWC(strength=10.0)}),
    "derpp": DERpp(),
    "si": SI(),
}


def test_a_step_is_that_of_an_update() -> None:
    parent = update(events(200), training=TRAINING).state
    live = Live(parent=parent, method=Finetune(), training=TRAINING)
    live.update(events(64, seed=1))
    state = live.state(CURSOR)
    whole = update(
        events(64, seed=1), parent, Finetune(), Training(batch_size=64, learning_rate=1e-2, unknown_rate=0.0)
    )
    assert (state.steps, state.updates) == (parent.steps + 1, parent.updates + 1)
    # The update cuts 64 rows into smaller batches, so only the size of the move can be compared.
    for name, weight in state.weights.items():
        assert (weight - parent.weights[name]).abs().max() <= 4 * 1.01e-2
        assert weight.shape == whole.state.weights[name].shape


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_what_changes_and_remembers(name: str) -> None:
    method = METHODS[name]
    parent = update(events(600), None, method, TRAINING).state
    live = Live(parent=parent, method=method, training=TRAINING, absorb_rows=256)
    for call in range(20):
        loss = live.update(events(64, seed=10 + call, turn=1.0))
        assert torch.isfinite(loss)
    state = live.state(CURSOR)
    asked = events(400, seed=99, turn=1.0)
    assert Predictor.of(state).score(asked).losses.mean() < 0.8 * Predictor.of(parent).score(asked).losses.mean()
    if name in ("replay_ewc", "derpp"):
        assert state.method.memory_rows == 600 + 20 * 64
    if name == "replay_ewc":
        assert {"fisher", "anchor"} <= state.method.tensors.keys()
    assert update(events(40, seed=7), state, method, TRAINING).steps > 0, "the state is one to continue from"


def test_new_categories_and_classes_join() -> None:
    method = Replay(ratio=1.0)
    parent = update(events(300, "multiclass"), None, method, TRAINING, "multiclass").state
    live = Live(parent=parent, method=method, training=TRAINING, absorb_rows=64)
    rows = events(64, "multiclass", seed=1, shops="xyz")
    live.update(rows)
    live.update(relabelled(events(64, "multiclass", seed=2, shops="xyz"), ["new"] * 64))
    state = live.state(CURSOR)
    assert state.encoder.classes == (*parent.encoder.classes, "new")
    assert set(state.encoder.categorical[-1].categories) >= {"a", "x", "y", "z"}
    assert state.method.memory_rows == 428


def test_it_begins_again_only_where_the_inputs_of_the_model_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = update(events(300), training=TRAINING).state
    begun: list[object] = []
    begin = Live._begin
    monkeypatch.setattr(Live, "_begin", lambda self, *args: (begun.append(self), begin(self, *args))[1])
    live = Live(parent=parent, method=Finetune(), training=TRAINING, absorb_rows=64)
    live.update(events(64, seed=1))
    live.update(events(64, seed=2))
    assert len(begun) == 1
    assert live.state(CURSOR).encoder.categorical[-1].extensions == parent.encoder.categorical[-1].extensions + 2
    live.update(events(64, seed=3, shops="xyz"))
    assert len(begun) == 2
    assert set(live.state(CURSOR).encoder.categorical[-1].categories) == set("abcxyz")


def test_outputs_are_those_of_when_a_row_was_learned() -> None:
    parent = update(events(100), None, DERpp(), TRAINING).state
    rows = events(64, seed=1)
    live = Live(parent=parent, method=DERpp(), training=TRAINING)
    before = Predictor.of(parent).outputs(rows)[0]
    live.update(rows)
    live.update(events(64, seed=2))
    memory = live.state(CURSOR).method.memory
    assert memory is not None
    held = dict(zip(memory.column(EVENT_ID).to_pylist(), memory.column(OUTPUTS).to_pylist(), strict=True))
    found = torch.tensor([held[event] for event in rows.column(EVENT_ID).to_pylist()])
    torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [Replay(ratio=1.0), DERpp(), AGEM()])
def test_each_step_of_many_rows_rehearses_its_share(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = update(events(300), None, method, TRAINING).state
    live = Live(parent=parent, method=method, training=TRAINING)
    asked: list[tuple[int, int]] = []
    step = Stepper.step

    def watched(self: Stepper, rows: Rows) -> torch.Tensor:
        beside = 0 if rows.reference is None else len(rows.reference[0])
        asked.append((rows.parts[0].fresh, len(rows.parts[0].batch) - rows.parts[0].fresh + beside))
        return step(self, rows)

    monkeypatch.setattr(Stepper, "step", watched)
    live.update(events(150, seed=1))
    assert asked == [(50, 50)] * 3


def test_the_parent_is_left_alone() -> None:
    parent = update(events(200), method=SI(), training=TRAINING).state
    before = {n: v.clone() for n, v in tensors(parent).items()}
    live = Live(parent=parent, method=SI(), training=TRAINING)
    live.update(events(64, seed=1))
    live.state(CURSOR)
    assert all(torch.equal(v, before[n]) for n, v in tensors(parent).items())


def test_many_rows_are_several_steps() -> None:
    parent = update(events(200), training=TRAINING).state
    live = Live(parent=parent, method=Finetune(), training=TRAINING)
    live.update(events(150, seed=1))
    assert live.state(CURSOR).steps == parent.steps + 3


def test_what_cannot_be_live_is_refused() -> None:
    parent = update(events(60), training=TRAINING).state
    for method in (FromScratch(), GDumb(), LwF()):
        with pytest.raises(ConfigError, match="cannot be live"):
            Live(parent=parent, method=method, training=TRAINING)
    with pytest.raises(ConfigError, match="absorb_rows"):
        Live(parent=parent, method=Finetune(), training=TRAINING, absorb_rows=0)
    with pytest.raises(UpdateError, match="no labelled row"):
        Live(parent=parent, method=Finetune(), training=TRAINING).update(events(0))
