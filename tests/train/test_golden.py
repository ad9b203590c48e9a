"""Rows that are made up, and what a version answered to them when it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cltrain.data.encoder import Encoder, TensorColumn, TextColumn
from cltrain.errors import DigestError
from cltrain.storage import Storage
from cltrain.train.golden import OTHER_DEVICE, SAME_DEVICE, Golden, golden_of, golden_rows
from cltrain.train.predictor import Predictor
from cltrain.train.state import load_golden, save_state
from tests.train.made import events, update


class Own(nn.Module):
    """A user's model, whose code is about to change."""

    bias, scale, noise, strange = 0.0, 1.0, 0.0, ""

    def __init__(self, num_numeric: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_numeric, num_outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        if self.strange:
            raise ValueError(self.strange)
        return self.layer(numeric) * self.scale + self.bias + self.noise * torch.randn(len(numeric), 1)


OWN = {"_target_": f"{__name__}.Own"}


def predictor(task: str = "binary", **more: Any) -> Predictor:
    return Predictor.of(update(events(60, task), task=task, **more).state)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_version_answers_as_it_did(tmp_path: Path, task: str) -> None:
    made = predictor(task)
    golden = golden_of(made)
    assert golden is not None
    assert len({str(row) for row in golden.rows}) == len(golden.rows) == 16
    storage = Storage(tmp_path)
    save_state(made.state, storage, "states/a", golden)
    found = load_golden(storage, "states/a")
    assert found is not None
    assert found.problem(Predictor.load(storage, "states/a")) is None
    assert found.to_json() == golden.to_json()
    save_state(made.state, storage, "states/b")
    assert load_golden(storage, "states/b") is None


def test_code_that_has_changed_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = predictor(model=OWN)
    golden = golden_of(made)
    assert golden is not None
    for name, value, words in (("bias", 0.01, "answered"), ("scale", -1.0, "answered"), ("strange", "no", "cannot")):
        with monkeypatch.context() as patch:
            patch.setattr(Own, name, value)
            assert words in (golden.problem(made) or "")
    with monkeypatch.context() as patch:
        patch.setattr(Own, "bias", float("nan"))
        assert "nan" in (golden.problem(made) or "")
        broken = golden_of(made)
        assert broken is not None
        assert broken.answers[0] == [None]
        assert "nan" in (broken.problem(made) or ""), "one that was broken when it was made is not served either"
    assert golden.problem(made) is None


def test_another_kind_of_device_may_be_off_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    made = predictor(model=OWN)
    golden = golden_of(made)
    assert golden is not None
    elsewhere = replace(golden, device="another kind")
    monkeypatch.setattr(Own, "bias", 10 * SAME_DEVICE)
    assert golden.problem(made) is not None
    assert elsewhere.problem(made) is None
    monkeypatch.setattr(Own, "bias", 10 * OTHER_DEVICE)
    assert "another kind" in (elsewhere.problem(made) or "")


def test_other_numbers_of_classes_show() -> None:
    golden = golden_of(predictor("multiclass"))
    assert golden is not None
    assert "1 numbers a row" in (golden.problem(predictor()) or "")


def test_a_model_that_is_random_or_particular_has_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = predictor(model=OWN)
    monkeypatch.setattr(Own, "noise", 1.0)
    assert golden_of(made) is None
    assert "differently each time" in caplog.text
    monkeypatch.setattr(Own, "strange", "what is this")
    assert golden_of(made) is None
    assert "what is this" in caplog.text


def test_a_batch_that_was_altered_is_refused(tmp_path: Path) -> None:
    made, storage = predictor(), Storage(tmp_path)
    save_state(made.state, storage, "states/a", golden_of(made))
    about = json.loads(storage.read("states/a/golden.json"))
    storage.write("states/a/golden.json", json.dumps({**about, "answers": []}).encode())
    with pytest.raises(DigestError, match=r"golden\.json was altered"):
        load_golden(storage, "states/a")


def test_rows_reach_the_ends_and_hold_no_value_of_the_data() -> None:
    made = predictor()
    encoder = made.state.encoder
    rows = golden_rows(encoder)
    assert rows == golden_rows(Encoder.from_json(json.loads(json.dumps(encoder.to_json()))))
    column, category = encoder.numeric[0], encoder.categorical[0]
    values = [row.get(column.name) for row in rows]
    assert None in values
    assert any(value is not None and (value - column.mean) / column.std >= column.high for value in values)
    assert not {value for value in values if value is not None} & set(events(60)[column.name].to_pylist())
    asked = {row.get(category.name) for row in rows}
    assert len(asked & set(category.categories)) > 1
    assert asked - set(category.categories) - {None}


def test_images_and_texts_are_small_in_the_file() -> None:
    class Reader:
        """A predictor that says what it was given."""

        task = "regression"
        device = torch.device("cpu")
        state = type("State", (), {})()

        def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{"value": float(np.sum(row.get("image") or 0.0)) + len(row.get("words") or "")} for row in rows]

    image = TensorColumn(name="image", shape=(3, 40, 40), element="uint8")
    text = TextColumn(name="words", buckets=64, max_tokens=8)
    reader = Reader()
    reader.state.encoder = Encoder(task="regression", numeric=(), categorical=(), tensors=(image,), texts=(text,))
    golden = golden_of(reader)  # type: ignore[arg-type]
    assert golden is not None
    assert len(json.dumps(golden.to_json())) < 10_000
    assert Golden.from_json(json.loads(json.dumps(golden.to_json()))).problem(reader) is None  # type: ignore[arg-type]
    assert max(value for (value,) in golden.answers if value is not None) > 4800 * 50
