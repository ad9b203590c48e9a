"""Every option in conf/ is built and asked the same questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.config import CONF, build
from cltrain.errors import ConfigError
from cltrain.evaluate import Evaluation
from cltrain.memory import Seen
from cltrain.memory.base import KEY
from cltrain.methods import EWC, DERpp, Method, Replay
from cltrain.models.build import build_model, supports_incremental
from cltrain.records import EVENT_ID, Comparison, ReportCard, from_json, to_json
from cltrain.storage import Storage
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Recalibrate, Training
from cltrain.train.state import load_state, save_state
from cltrain.trigger import Evidence
from tests.train.made import IMAGE, MODEL, WORDS, assert_same, events, joined_by, schema, tensors, update

Settings = Callable[..., dict[str, Any]]
NEEDED = {"volume": ["trigger.rows=10"], "custom": ["model._target_=tests.contract.test_parts.Custom"]}
SHORT = Training(batch_size=16, learning_rate=1e-2, unknown_rate=0.1)


class Custom(torch.nn.Module):
    """A user's own model, which knows nothing of cltrain."""

    def __init__(self, num_numeric: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(num_numeric, num_outputs)

    def forward(self, numeric: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        return self.linear(numeric)


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def built(settings_of: Settings, group: str, option: str) -> Any:
    return build(settings_of(f"{group}={option}", *NEEDED.get(option, []))[group], group)


@pytest.mark.parametrize("option", options("method"))
class TestMethods:
    def test_it_repeats_and_leaves_its_input_alone(self, option: str, settings_of: Settings) -> None:
        method: Method = built(settings_of, "method", option)
        parent = update(events(150), None, method, SHORT).state
        before = {name: value.clone() for name, value in tensors(parent).items()}
        memory = parent.method.memory.to_pylist() if parent.method.memory else None
        children = [update(events(60, seed=1, shops="bcd"), parent, method, SHORT, seed=1).state for _ in range(2)]
        assert_same(*children)
        assert all(torch.equal(value, before[name]) for name, value in tensors(parent).items())
        assert (parent.method.memory.to_pylist() if parent.method.memory else None) == memory
        other = update(events(60, seed=1, shops="bcd"), parent, method, SHORT, seed=2).state
        assert any(not torch.equal(value, other.weights[n]) for n, value in children[0].weights.items())

    @pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
    def test_resumed_from_files_is_as_if_carried_in_memory(
        self, option: str, task: str, settings_of: Settings, tmp_path: Path
    ) -> None:
        method: Method = built(settings_of, "method", option)
        storage = Storage(tmp_path)
        carried = resumed = None
        for number in range(3):
            classes = [str(c) for c in range(3 + number)]
            rows = events(80, task, seed=number, shops="abcdef"[number : number + 3], classes=classes)
            carried = update(rows, carried, method, SHORT, task, seed=number).state
            digest = save_state(
                update(rows, resumed, method, SHORT, task, seed=number).state, storage, f"states/{number}"
            )
            resumed = load_state(storage, f"states/{number}")
            assert_same(carried, resumed)
            assert save_state(resumed, storage, "states/again") == digest
        assert resumed is not None
        assert load_state(storage, "states/2", only_weights=True).optimizer == {}

    def test_its_state_fits_the_model(self, option: str, settings_of: Settings) -> None:
        method: Method = built(settings_of, "method", option)
        state = update(
            events(60, seed=1, shops="cd"), update(events(60), None, method, SHORT).state, method, SHORT
        ).state
        for named in state.method.tensors.values():
            assert all(value.shape == state.weights[name].shape for name, value in named.items())
            assert all(not value.requires_grad and value.device.type == "cpu" for value in named.values())
        assert isinstance(method.stateful, bool)
        assert method.rehearse(16, 0, torch.Generator()) is None


def see(rows: pa.Table) -> Seen:
    x, z = (rows.column(name).to_numpy() for name in ("x", "z"))
    return Seen(losses=np.abs(x), uncertainty=1 / (1 + np.abs(z)), embeddings=np.stack([x, z], 1).astype(np.float32))


@pytest.mark.parametrize("option", options("memory"))
class TestMemories:
    def test_admission(self, option: str, settings_of: Settings) -> None:
        memory = built(settings_of, "memory", option)
        small = dataclasses.replace(memory, capacity_rows=30)
        first = small.admit(None, events(20), see)
        assert set(events(1).column_names) | {KEY} <= set(first.column_names)
        second = small.admit(first, events(50, seed=1), see)
        assert second.equals(small.admit(first, events(50, seed=1), see))
        assert first.num_rows == 20
        assert second.num_rows == 30
        ids = second.column(EVENT_ID).to_pylist()
        assert len(set(ids)) == 30
        again = small.admit(second, events(50, seed=1), see)
        assert set(again.column(EVENT_ID).to_pylist()) == set(ids) or option == "herding", "offered twice, kept once"

    @pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
    def test_a_method_rehearses_from_it(self, option: str, task: str, settings_of: Settings) -> None:
        memory = dataclasses.replace(built(settings_of, "memory", option), capacity_rows=30)
        for method in (Replay(ratio=1.0, memory=memory), DERpp(memory=memory)):
            state = update(events(50, task), None, method, SHORT, task).state
            trained = update(events(40, task, seed=1), state, method, SHORT, task)
            assert trained.rows_replayed == 40
            assert trained.state.method.memory_rows == 30


@pytest.mark.parametrize("option", options("engine"))
def test_engines(option: str, settings_of: Settings) -> None:
    engine = built(settings_of, "engine", option)
    assert engine.offers >= {"elementwise", "whole"}
    if engine.min_workers:
        with pytest.raises(ConfigError, match=f"engine={option}.*cluster.workers"):
            engine.here(torch.device("cpu"))
    else:
        assert engine.here(torch.device("cpu")).world == 1


@pytest.mark.parametrize("option", options("adapter"))
def test_adapters(option: str, settings_of: Settings) -> None:
    adapter = built(settings_of, "adapter", option)
    parent = update(events(60)).state
    child = update(events(60, seed=1), parent, adapter=adapter).state
    assert (child.base is not None) == adapter.adapts(stateful=True)


@pytest.mark.parametrize("option", options("model"))
def test_models(option: str, settings_of: Settings) -> None:
    model = settings_of(f"model={option}", *NEEDED.get(option, []))["model"]
    more = {"cnn": [IMAGE], "text": [WORDS]}.get(option, [])
    assert supports_incremental(model)
    for task in ("binary", "multiclass", "regression"):
        state = None
        for seed in range(2):
            rows, described = joined_by(events(80, task, seed=seed), *more), schema(task, *more)
            state = update(rows, state, EWC(), SHORT, task, model=model, described=described).state
        assert state is not None
        predictor = Predictor.of(state)
        scores = predictor.score(joined_by(events(30, task, seed=2), *more))
        assert len(scores) == 30
        assert len(predictor.score(joined_by(events(0, task), *more))) == 0
        answers = predictor.answer([{"x": 1.0, "z": None, "shop": "new"}, {}])
        assert [a.keys() for a in answers] == [answers[0].keys()] * 2
    spec = state.encoder.spec
    torch.manual_seed(0)
    weights = build_model(model, spec).state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(value, weights[name]) for name, value in build_model(model, spec).state_dict().items())


comparisons = st.builds(
    lambda name, rows, loss, difference, half: Comparison(
        name=name, rows=rows, challenger={"log_loss": loss + difference}, champion={"log_loss": loss},
        difference=difference, low=difference - half, high=difference + half,
    ),
    st.sampled_from(["window", "past"]), st.integers(1, 10_000), st.floats(0, 2), st.floats(-1, 1), st.floats(0, 1),
)  # fmt: skip
cards = st.builds(
    lambda c: ReportCard(comparisons=tuple(c), transfer=(), latency_ms=0.0, size_bytes=0),
    st.lists(comparisons, min_size=1, max_size=3),
)


@pytest.mark.parametrize("option", options("gate"))
def test_gates(option: str, settings_of: Settings) -> None:
    gate = built(settings_of, "gate", option)

    @settings(max_examples=50, deadline=None)
    @given(cards)
    def ask(card: ReportCard) -> None:
        verdict = gate.judge(card)
        assert gate.judge(from_json(ReportCard, to_json(card))) == verdict
        assert verdict.reasons
        worse = [
            dataclasses.replace(c, difference=c.difference + 3, low=c.low + 3, high=c.high + 3)
            for c in card.comparisons
        ]
        assert not gate.judge(dataclasses.replace(card, comparisons=tuple(worse))).accepted

    ask()


@pytest.mark.parametrize("option", options("trigger"))
def test_triggers(option: str, settings_of: Settings) -> None:
    trigger = built(settings_of, "trigger", option)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    for days in (0, 30):
        seen = Evidence(now=start + timedelta(days=days), last_update=start, fresh_rows=days, trained_rows=10)
        decision = trigger.decide(seen)
        assert decision == trigger.decide(seen)
        assert from_json(type(decision), to_json(decision)) == decision


def test_training(settings_of: Settings) -> None:
    parts = built(settings_of, "train", "default")
    assert parts.keys() == {"stateful", "stateless", "surgery"} == set(options("train")) - {"default"}
    assert all(isinstance(part, Training) for part in parts.values())


@pytest.mark.parametrize("option", options("recalibrate"))
def test_recalibration(option: str, settings_of: Settings) -> None:
    assert isinstance(built(settings_of, "recalibrate", option), Recalibrate)


@pytest.mark.parametrize("option", options("evaluate"))
def test_evaluation(option: str, settings_of: Settings) -> None:
    evaluation = built(settings_of, "evaluate", option)
    assert isinstance(evaluation, Evaluation)
    version = Predictor.of(update(events(60), model=MODEL).state)
    card = evaluation.card(version, version, [(0, events(50))], seed=0)
    assert from_json(ReportCard, to_json(card)) == card
