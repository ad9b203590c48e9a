"""An update that is killed at any step and started again ends with the bits of one that was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cltrain.errors import StoreError
from cltrain.methods import EWC, SI, Combined, DERpp, Finetune, Method, Replay
from cltrain.storage import Storage
from cltrain.train.checkpoint import Checkpoints
from cltrain.train.engines import Plain
from cltrain.train.settings import Training
from cltrain.train.step import Rows, Stepper
from tests.train.made import assert_same, events, update

DROPPING = {
    "_target_": "cltrain.models.TabularNet",
    "name": "made",
    "hidden": [8],
    "embedding_dim": 2,
    "dropout": 0.2,
}
TRAINING = Training(batch_size=16, epochs=4, learning_rate=1e-2, unknown_rate=0.1, checkpoint_steps=3)
STOPPING = Training(
    batch_size=16, epochs=12, learning_rate=3e-2, validation_share=0.3, patience=2, checkpoint_steps=5, optimizer="sgd",
    optimizer_settings={"momentum": 0.9},
)  # fmt: skip
METHODS: dict[str, Method] = {
    "finetune": Finetune(),
    "replay_ewc": Combined(parts={"replay": Replay(), "ewc": EWC(strength=50.0)}),
    "derpp_si": Combined(parts={"derpp": DERpp(), "si": SI()}),
}


class KilledError(Exception):
    pass


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let the n-th step from now fail as it begins."""

    def set_to(number: int | None) -> None:
        left = [number]
        step = _STEP

        def dying(self: Stepper, rows: Rows) -> object:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise KilledError
            return step(self, rows)

        monkeypatch.setattr(Stepper, "step", dying)

    return set_to


_STEP = Stepper.step


@pytest.mark.parametrize("training", [TRAINING, STOPPING], ids=["passes", "stopping early"])
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_any_step_it_ends_with_the_same_bits(
    name: str, training: Training, tmp_path: Path, kill_at: Callable[[int | None], None]
) -> None:
    method = METHODS[name]
    parent = update(events(150), None, method, training, model=DROPPING).state
    whole = update(events(140, seed=1, shops="bcd"), parent, method, training, model=DROPPING)
    steps = random.Random(name)
    for attempt in range(4):
        checkpoints = Checkpoints(Storage(tmp_path), f"updates/{attempt}", Plain(), training.checkpoint_steps)
        for kill in (steps.randrange(whole.steps), steps.randrange(whole.steps)):
            kill_at(kill)
            try:
                again = update(
                    events(140, seed=1, shops="bcd"), parent, method, training, model=DROPPING, checkpoints=checkpoints
                )
                break
            except KilledError:
                continue
        else:
            kill_at(None)
            again = update(
                events(140, seed=1, shops="bcd"), parent, method, training, model=DROPPING, checkpoints=checkpoints
            )
        assert_same(whole.state, again.state)
        assert (whole.steps, whole.rows_trained, whole.rows_replayed) == (
            again.steps,
            again.rows_trained,
            again.rows_replayed,
        )
        assert whole.loss == again.loss
        checkpoints.clear()
    assert Storage(tmp_path).names("updates") == []


def test_at_most_one_interval_is_done_again(tmp_path: Path, kill_at: Callable[[int | None], None]) -> None:
    checkpoints = Checkpoints(Storage(tmp_path), "updates/one", Plain(), 3)
    kill_at(11)
    with pytest.raises(KilledError):
        update(events(150), None, Finetune(), TRAINING, checkpoints=checkpoints)
    saved = checkpoints.load()
    assert saved is not None
    assert saved.steps == 9
    names = Storage(tmp_path).names("updates/one")
    assert len(names) == 3, "the one before it is gone"


def test_a_checkpoint_that_was_altered_or_is_of_other_ranks_is_not_used(
    tmp_path: Path, kill_at: Callable[[int | None], None]
) -> None:
    storage = Storage(tmp_path)
    checkpoints = Checkpoints(storage, "updates/one", Plain(), 3)
    kill_at(11)
    with pytest.raises(KilledError):
        update(events(150), None, Finetune(), TRAINING, checkpoints=checkpoints)
    assert Checkpoints(storage, "updates/one", Plain(world=2), 3).load() is None
    file = next(n for n in storage.names("updates/one") if n.endswith("9.safetensors"))
    storage.write(file, storage.read(file)[:-1] + b"!")
    assert checkpoints.load() is None
    kill_at(None)
    fresh = update(events(150), None, Finetune(), TRAINING)
    assert_same(fresh.state, update(events(150), None, Finetune(), TRAINING, checkpoints=checkpoints).state)


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise StoreError("no space")

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(StoreError, match="no space"):
        update(events(150), training=TRAINING, checkpoints=Checkpoints(Storage(tmp_path), "u", Plain(), 3))
