"""Each case runs and says what it is measured against, and both sides do the same work; speed is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import bare, mnist, models, step, streams, tasks, turns
from benchmarks.mnist import Digits
from cltrain.methods import MethodState
from cltrain.records import LABEL
from cltrain.task import distillation
from cltrain.train.engines import Plain
from cltrain.train.loader import Draw, Loader
from cltrain.train.optimizer import make_optimizer
from cltrain.train.settings import Training
from cltrain.train.step import Stepper

ROOT = Path(__file__).resolve().parent.parent


def case(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_step_case_prints_a_table_and_writes_its_rows(tmp_path: Path) -> None:
    result = tmp_path / "step.json"
    few = ["--turns", "1", "--model", "mlp", "--batch-size", "64", "--no-faster"]
    done = case("step", *few, "--json", str(result))
    assert done.returncode == 0, done.stderr
    assert "step mlp batch 64" in done.stdout
    written = json.loads(result.read_text())
    assert {row["name"].split()[-1] for row in written["rows"]} == {"finetune", "replay", "ewc", "derpp"}
    assert all(row["ratio"] > 0 for row in written["rows"])
    assert written["machine"]["torch"]


@pytest.mark.parametrize("method", step.METHODS)
def test_the_loop_by_hand_takes_the_same_step_as_ours(method: str) -> None:
    data, size, training = step.Data(torch.device("cpu")), 64, Training(weight_decay=0.0)
    new, old = data.batch("parent", 0, size), data.batch("outputs", size, 2 * size)
    torch.manual_seed(0)
    by_hand, ours = step.MODELS["mlp"](), step.MODELS["mlp"]()
    ours.load_state_dict(by_hand.state_dict())
    importance = {n: torch.rand_like(p) for n, p in ours.named_parameters()}
    anchor = {n: p.detach() + 0.1 for n, p in ours.named_parameters()}

    class Once(bare.Work):
        def batches(self) -> Iterator[Tensor]:
            yield torch.arange(size)

        def draw(self, rows: int) -> Tensor:
            return torch.arange(rows)

    work = Once(
        x=new.inputs["pixels"],
        y=new.target,
        parent_outputs=new.extra["parent"],
        old_x=old.inputs["pixels"],
        old_y=old.target,
        old_outputs=old.extra["outputs"],
        importance=list(importance.values()),
        anchor=list(anchor.values()),
        batch_size=size,
        epochs=1,
    )
    bare.LOOPS[method](by_hand, torch.optim.Adam(by_hand.parameters(), lr=1.0, eps=1.0), work)

    settings = step.METHODS[method]
    slots = {"ewc": {"fisher": importance, "anchor": anchor}, "si": {"si": importance, "anchor": anchor}}
    engine = Plain()
    running = engine.begin(ours, lambda net: make_optimizer(net, training))
    running.optimizer = torch.optim.Adam(ours.parameters(), lr=1.0, eps=1.0)
    state = MethodState(tensors=slots.get(method, {}))
    stepper = Stepper(
        running=running, task="multiclass", method=settings, state=state, engine=engine, training=training
    )
    everyone = torch.arange(size)
    old_too = everyone if settings.rehearse(size, size, torch.Generator()) is not None else None
    loader = Loader(new, old, engine=engine, method=settings)
    stepper.step(loader.gather(Draw(everyone, old_too, (0, 0))))
    for (name, value), expected in zip(ours.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4, msg=f"{method}: {name}")


def test_turns_are_taken_and_compared_turn_by_turn() -> None:
    said = {"a": iter([9.0, 4.0, 2.0, 3.0]), "b": iter([9.0, 1.0, 2.0, 1.5])}
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return next(said[name])

    times = turns.take_turns({n: lambda n=n: contender(n) for n in said}, 3)  # type: ignore[misc]
    assert "".join(calls) == "ababbaab"
    median, spread = turns.ratio(times["a"], times["b"])
    assert median == 2.0
    assert 1.0 <= spread[0] <= spread[1] <= 4.0


def test_no_turn_begins_when_the_time_is_over() -> None:
    assert len(turns.take_turns({"a": lambda: 1.0}, 9, seconds_at_most=0.0, at_least=2)["a"]) == 2
    assert len(turns.take_turns({"a": lambda: 1.0}, 9)["a"]) == 9


def digits(rows: int = 400) -> Digits:
    """Images that are bright in a place of their own for each label."""
    chance = np.random.default_rng(0)
    labels = np.arange(rows, dtype=np.uint8) % 10
    pixels = chance.integers(0, 100, (rows, 784), np.uint8)
    for label in range(10):
        pixels[labels == label, 70 * label : 70 * label + 70] += 150
    return Digits(pixels, labels)


def test_streams_are_what_they_say() -> None:
    train = digits()
    permuted = list(tasks.tasks("permuted", 2, train, train, seed=0))
    assert [len(part) for part in permuted[0]] == [400, 400]
    images = [np.asarray(rows.column("pixels").combine_chunks().flatten()).reshape(-1, 784) for rows, _ in permuted]
    assert not np.array_equal(images[0], images[1])
    assert np.array_equal(np.sort(images[0], axis=1), np.sort(train.pixels, axis=1))
    for kind, labels in (("split-class", ["2", "3"]), ("split-domain", ["0", "1"]), ("split-task", ["2", "3"])):
        rows, _ = list(tasks.tasks(kind, 5, train, train, seed=0))[1]
        assert rows.column(LABEL).unique().to_pylist() == labels
        assert ("task" in rows.column_names) == (kind == "split-task")
    padded, _ = next(tasks.tasks("permuted", 1, train, train, seed=0, padded=True))
    assert padded.schema.field("pixels").type.list_size == 1024


def test_a_quarter_turn_is_one() -> None:
    train = digits(20)
    turned = tasks.rotated(train.pixels, 90.0).reshape(-1, 28, 28)
    images = train.pixels.reshape(-1, 28, 28)
    assert any(np.array_equal(turned, np.rot90(images, k, axes=(1, 2))) for k in (1, -1))
    assert np.array_equal(tasks.rotated(train.pixels, 0.0), train.pixels)


def test_a_model_that_is_told_the_task_leaves_the_old_heads_to_distillation() -> None:
    """For a row of a new task it answers with that task's classes, and what it says of all others is as it was."""
    model, pixels = models.MultiHead([5], num_outputs=6), torch.rand(3, 784)
    said, bare_logits = model(pixels, task=torch.full((3, 1), 2.0)), models.MLP.forward(model, pixels)
    assert torch.softmax(said, 1)[:, :4].sum() == 0
    assert distillation("multiclass", said, bare_logits[:, :4]).tolist() == pytest.approx([0.0] * 3, abs=1e-6)
    assert torch.autograd.grad(torch.logsumexp(said, 1).sum(), model.head.weight)[0][:4].abs().sum() == 0


@pytest.mark.parametrize("name", ["split-class/derpp1100", "split-task/ewc", "permuted10/er500+ewc"])
def test_a_stream_is_learned_by_way_of_train_update(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(streams, "load", lambda _: (digits(), digits()))
    stream, method = name.split("/")
    found = streams.train(streams.Run(stream=stream, method=method, seed=0), tmp_path, "cpu")
    setup = streams.SETUPS[stream]
    assert [len(row) for row in found["matrix"]] == list(range(1, setup.tasks + 1))
    assert 0 <= found["accuracy"] <= 100
    assert found["cpu_seconds"] > 0


def test_measures_by_hand() -> None:
    found = streams.measures([[90.0], [95.0, 80.0], [70.0, 85.0, 60.0]])
    assert found == pytest.approx({"accuracy": 215 / 3, "forgetting": 10.0, "backward_transfer": -7.5})


def test_rows_name_what_they_are_measured_against() -> None:
    done = {}
    for method, accuracies in {"finetune": [40.0, 42.0], "er500": [79.0, 80.0]}.items():
        for seed, accuracy in enumerate(accuracies):
            run = streams.Run(stream="permuted20", method=method, seed=seed)
            done[run.name] = {"settings": run.settings(), "accuracy": accuracy, "forgetting": 1.0}
            done[run.name] |= {"backward_transfer": -1.0, "cpu_seconds": 1.0}
    done["permuted20/er200/0"] = {"settings": "of another day"}
    finetune, replay = streams.summary(done, ["permuted20"])
    assert (finetune["accuracy"], finetune["seeds"], finetune["reached"]) == (41.0, 2, True)
    assert (replay["published"], replay["reached"]) == (80.6, False)
    assert replay["ratio"] == pytest.approx(79.5 / 80.6)


def test_a_file_that_is_not_mnist_is_refused(tmp_path: Path) -> None:
    for name in mnist.DIGESTS:
        (tmp_path / name).write_bytes(b"\x00\x00\x08\x01")
    with pytest.raises(ValueError, match="delete it"):
        mnist.load(tmp_path)
