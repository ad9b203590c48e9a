"""Methods that rehearse or distil, by cases that one can check by hand."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from cltrain.batch import Batch
from cltrain.errors import ConfigError
from cltrain.memory import LossWeighted, Reservoir
from cltrain.methods import AGEM, DER, EWC, Combined, DERpp, Finetune, GDumb, Joined, LwF, Method, Replay
from cltrain.methods.base import OUTPUTS
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from tests.train.made import assert_same, events, relabelled, update

LONG = Training(batch_size=16, learning_rate=1e-2, epochs=10)


def joined(outputs: list[list[float]], fresh: int, even: bool = False, **reads: Any) -> Joined:
    rows = len(outputs)
    return Joined(
        task="multiclass",
        outputs=torch.tensor(outputs),
        target=torch.zeros(rows, dtype=torch.int64),
        weight=torch.ones(rows),
        fresh=fresh,
        new_weight=float(fresh),
        old_weight=float(rows - fresh),
        even=even,
        new={n: torch.tensor(v) for n, v in reads.get("new", {}).items()},
        old={n: torch.tensor(v) for n, v in reads.get("old", {}).items()},
    )


def test_der_compares_with_what_was_said() -> None:
    rows, stored = [[9.0, 9.0], [1.0, 2.0], [1.0, 5.0]], [[0.0, 4.0], [3.0, 0.0]]
    for even in (True, False):
        term = DER(alpha=0.5).terms(joined(rows, 1, even, old={"outputs": stored}))["outputs"]
        assert term.item() == pytest.approx(0.5 * (1 + 4 + 4 + 25) / 4)
    known = {"outputs": stored, "outputs_known": [[1.0, 1.0], [1.0, 0.0]]}
    term = DER(alpha=0.5).terms(joined(rows, 1, old=known))["outputs"]
    assert term.item() == pytest.approx(0.5 * ((1 + 4) / 2 + 4 / 1) / 2), "a class that was not known does not count"
    assert DER().terms(joined(rows, 3)) == {}


def test_labels_of_rehearsed_rows_count_as_the_method_says() -> None:
    rows = [[0.0, 0.0], [0.0, 1.0], [2.0, 0.0]]
    losses = torch.nn.functional.cross_entropy(torch.tensor(rows), torch.zeros(3, dtype=torch.int64), reduction="none")
    for even in (True, False):
        said = joined(rows, 1, even)
        assert said.labels(None).item() == pytest.approx(losses.mean().item())
        assert said.labels(0.0).item() == pytest.approx(losses[0].item())
        assert said.labels(0.7).item() == pytest.approx((losses[0] + 0.7 * losses[1:].mean()).item())
    assert (Replay().rehearsed_weight, DER().rehearsed_weight, DERpp(beta=0.7).rehearsed_weight) == (None, 0.0, 0.7)


def test_lwf_is_zero_where_nothing_changed_and_asks_nothing_of_old_rows() -> None:
    rows = [[1.0, -1.0, 7.0], [5.0, 5.0, 5.0]]
    assert LwF().terms(joined(rows, 1, new={"parent": [[1.0, -1.0]]}))["parent"].item() == pytest.approx(0, abs=1e-6)
    assert LwF().terms(joined(rows, 1, new={"parent": [[-1.0, 1.0]]}))["parent"].item() > 0.1
    assert LwF().terms(joined(rows, 1)) == {}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_lwf_keeps_what_the_parent_says(task: str) -> None:
    moved = []
    rows = events(300, task, seed=1, turn=1.0)
    for method in (Finetune(), LwF(strength=5.0)):
        parent = update(events(300, task), None, method, LONG, task).state
        child = update(rows, parent, method, LONG, task).state
        moved.append(Predictor.of(child).score(events(300, task, seed=2)).losses.mean())
    assert moved[1] < 0.9 * moved[0]


@pytest.mark.parametrize("method", [DER(alpha=1.0), DERpp(), AGEM()], ids=["der", "derpp", "agem"])
def test_the_past_is_kept(method: Replay) -> None:
    losses = []
    for one in (Finetune(), method):
        parent = update(events(300), None, one, LONG).state
        child = update(events(300, seed=1, turn=1.0), parent, one, LONG).state
        losses.append(Predictor.of(child).score(events(300, seed=2)).losses.mean())
    assert losses[1] < 0.9 * losses[0]


def test_what_was_said_of_a_row_stays_as_it_was() -> None:
    method = DERpp(memory=Reservoir(capacity_rows=100))
    first = update(events(80, "multiclass"), None, method, LONG, "multiclass").state
    held = dict(zip(*(first.method.memory.column(n).to_pylist() for n in ("_event_id", OUTPUTS)), strict=True))
    rows = relabelled(events(60, "multiclass", seed=1), ["new"] * 60)
    second = update(rows, first, method, LONG, "multiclass").state
    again = dict(zip(*(second.method.memory.column(n).to_pylist() for n in ("_event_id", OUTPUTS)), strict=True))
    assert {len(v) for k, v in again.items() if k.startswith("0#")} == {3}
    assert {len(v) for k, v in again.items() if k.startswith("1#")} == {4}
    assert all(again[k] == v for k, v in held.items() if k in again)


def test_agem_takes_out_what_points_against_the_past() -> None:
    """(1, 1) against (-2, 0): the part along the first axis goes. Beside (2, 0) nothing does."""
    reference = {"w": torch.tensor([-2.0, 0.0])}
    gradients = {"w": torch.tensor([1.0, 1.0])}
    AGEM().project(gradients, reference, lambda value: value)
    assert gradients["w"].tolist() == [0.0, 1.0]
    AGEM().project(gradients, {"w": torch.tensor([2.0, 0.0])}, lambda value: value)
    assert gradients["w"].tolist() == [0.0, 1.0]


def test_gdumb_trains_on_its_memory_alone() -> None:
    method = GDumb(memory=Reservoir(capacity_rows=64))
    first = update(events(300), None, method, LONG)
    assert first.rows_trained == 64 * 10
    second = update(events(300, seed=1), first.state, method, LONG)
    assert second.rows_trained == 64 * 10
    assert second.state.method.memory_rows == 64
    fresh = update(events(300, seed=1), first.state, method, LONG)
    assert_same(second.state, fresh.state)
    with pytest.raises(ConfigError, match=r"memory\.capacity_rows 1 or more"):
        GDumb(memory=Reservoir(capacity_rows=0))
    with pytest.raises(ConfigError, match="LossWeighted needs a model"):
        GDumb(memory=LossWeighted())
    with pytest.raises(ConfigError, match="nothing combines with it"):
        Combined(parts={"gdumb": method, "ewc": EWC()})


def louder(batch: Batch, generator: torch.Generator) -> Batch:
    noise = torch.randn(batch.inputs["numeric"].shape, generator=generator)
    return Batch({**batch.inputs, "numeric": batch.inputs["numeric"] + noise}, batch.target, batch.weight, batch.extra)


def fewer(batch: Batch, generator: torch.Generator) -> Batch:
    return batch.rows(0, 1)


def test_replayed_rows_are_augmented_by_a_function_of_the_user() -> None:
    augmented = Replay(ratio=1.0, augmentation="tests.methods.test_rehearsal.louder")
    parent = update(events(100), None, augmented, LONG).state
    children = [
        update(events(80, seed=1), parent, method, LONG).state for method in (augmented, augmented, Replay(ratio=1.0))
    ]
    assert_same(*children[:2])
    assert any(not torch.equal(v, children[2].weights[n]) for n, v in children[0].weights.items())
    plain = update(events(100), None, Replay(ratio=1.0), LONG).state
    assert_same(parent, plain)
    with pytest.raises(ConfigError, match=r"method\.augmentation=no\.such cannot be imported"):
        Replay(augmentation="no.such")
    with pytest.raises(ConfigError, match="must return a Batch of as many rows"):
        update(events(80, seed=1), parent, Replay(ratio=1.0, augmentation="tests.methods.test_rehearsal.fewer"), LONG)


@pytest.mark.parametrize("method", [Finetune(), EWC(), Combined(parts={"ewc": EWC(), "lwf": LwF()})])
def test_new_classes_without_rehearsal_are_said_to_fail(method: Method, caplog: pytest.LogCaptureFixture) -> None:
    parent = update(events(80, "multiclass"), None, method, LONG, "multiclass").state
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        update(relabelled(events(60, "multiclass", seed=1), ["new"] * 60), parent, method, LONG, "multiclass")
    assert "method=replay" in caplog.text
    assert "'new'" in caplog.text


def test_new_classes_with_rehearsal_are_fine(caplog: pytest.LogCaptureFixture) -> None:
    parent = update(events(80, "multiclass"), None, Replay(), LONG, "multiclass").state
    update(relabelled(events(60, "multiclass", seed=1), ["new"] * 60), parent, Replay(), LONG, "multiclass")
    assert not caplog.records


def test_the_outputs_count_in_the_bytes_of_a_memory() -> None:
    method = DERpp(memory=Reservoir(capacity_bytes=5_000))
    state = update(events(200, "multiclass"), None, method, LONG, "multiclass").state
    assert 0 < state.method.memory.nbytes <= 1.1 * 5_000
    assert state.method.memory.column(OUTPUTS).null_count == 0


def test_a_small_ratio_still_replays() -> None:
    drawn = Replay(ratio=0.01).rehearse(16, 50, torch.Generator())
    assert drawn is not None
    assert len(drawn) == 1
