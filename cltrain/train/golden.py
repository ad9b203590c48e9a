"""A few rows with the answers that a version gave to them when it was made, so that whoever loads it can see whether it
still answers like that: its code, its packages and the machine may have changed under the same weights.

The rows are made up from what the encoder knows of its columns, and none is of anybody: they reach nulls, strangers and
the ends of each column's range, which a few rows of the data rarely do, and no row of a private stream is kept.
"""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cltrain.data.encoder import Encoder, TensorColumn
from cltrain.data.schema import HOUR, WEEKDAY
from cltrain.records import EVENT_TIME
from cltrain.seeding import numpy_generator

if TYPE_CHECKING:
    from cltrain.train.predictor import Predictor

log = logging.getLogger(__name__)

ROWS = 16
PATTERN = 61  # numbers of a tensor that are stored; they are repeated until it is full
SAME_DEVICE, OTHER_DEVICE = 1e-4, 1e-2  # of a probability, or of the label's standard deviation
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
STRANGER, WORDS = "a category that is in no vocabulary", "late early red blue one two flight order none not very"


@dataclass(frozen=True, kw_only=True)
class Golden:
    """rows: features as a client sends them, tensors by their first numbers. answers: (N, outputs) probabilities, or
    values; None where one was not finite. device: what computed them."""

    rows: Sequence[Mapping[str, Any]]
    answers: Sequence[Sequence[float | None]]
    device: str

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "rows": list(self.rows), "answers": list(self.answers)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Golden:
        return cls(rows=value["rows"], answers=value["answers"], device=value["device"])

    def problem(self, predictor: Predictor) -> str | None:
        """In what the version answers otherwise than when it was made, None if in nothing. Another kind of device may
        be off by more."""
        wanted = np.array(self.answers, np.float64)
        try:
            found = _answers(predictor, self.rows)
        except Exception as error:
            return f"cannot answer its golden batch any more: {type(error).__name__}: {error}"
        if found.shape != wanted.shape:
            return f"gives {found.shape[1]} numbers a row to its golden batch, and gave {wanted.shape[1]}"
        off = _off(predictor, found, wanted)
        here = device_kind(predictor.device)
        tolerance = SAME_DEVICE if here == self.device else OTHER_DEVICE
        if off.max() <= tolerance:
            return None
        row, output = np.unravel_index(int(off.argmax()), off.shape)
        return (
            f"answers {found[row, output]:.6g} to row {row} of its golden batch, and answered {wanted[row, output]:.6g}"
            f" when it was made (on {self.device}; this is {here}): see what changed in its code or its packages"
        )


def golden_of(predictor: Predictor) -> Golden | None:
    """None for a model that cannot answer such rows, or does not give the same answer twice."""
    rows = golden_rows(predictor.state.encoder)
    try:
        answers, again = _answers(predictor, rows), _answers(predictor, rows)
    except Exception as error:  # a model of a user's own
        log.warning("the model has no golden batch, as it cannot answer rows that are made up: %s", error)
        return None
    finite = np.isfinite(answers)
    if not np.array_equal(finite, np.isfinite(again)) or (_off(predictor, again, answers)[finite] > SAME_DEVICE).any():
        log.warning("the model has no golden batch, as it answers the same rows differently each time")
        return None
    said = [[value if math.isfinite(value) else None for value in row] for row in answers.tolist()]
    return Golden(rows=rows, answers=said, device=device_kind(predictor.device))


def golden_rows(encoder: Encoder, count: int = ROWS) -> list[dict[str, Any]]:
    """The same ones for the same encoder: the first has nulls alone, the second what is most usual, the next three the
    ends of each range and what lies beyond."""
    rows: list[dict[str, Any]] = [{EVENT_TIME: FIRST.isoformat()}]
    for number in range(1, count):
        random = numpy_generator(number, "golden")
        row: dict[str, Any] = {EVENT_TIME: (FIRST + timedelta(hours=7.5 * number)).isoformat()}
        for numeric in encoder.numeric:
            if numeric.name in (HOUR, WEEKDAY):
                continue
            places = [0.0, numeric.low, numeric.high, numeric.high + 10.0, *numeric.edges]
            place = places[number - 1 if number <= 4 else random.integers(len(places))]
            row[numeric.name] = numeric.mean + numeric.std * place
        for categorical in encoder.categorical:
            known = categorical.categories
            usual = known[0] if known else STRANGER
            drawn = known[random.integers(len(known))] if known and random.random() < 0.8 else STRANGER
            row[categorical.name] = usual if number == 1 else drawn
        for tensor in encoder.tensors:
            row[tensor.name] = _pattern(tensor, random)
        for text in encoder.texts:
            row[text.name] = " ".join(random.choice(WORDS.split(), 1 + number))
        nulls = {} if number <= 4 else {name: None for name in encoder.names if name in row and random.random() < 0.1}
        rows.append({**row, **nulls})
    return rows


def device_kind(device: torch.device | str = "cpu") -> str:
    """What computes, by its name: the same kind gives the same bits, and another one may not."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _pattern(column: TensorColumn, random: np.random.Generator) -> list[float]:
    size = min(PATTERN, math.prod(column.shape))
    if column.element == "uint8":
        return random.integers(0, 256, size).tolist()
    return random.normal(size=size).round(4).tolist()


def _answers(predictor: Predictor, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(N, outputs) float64."""
    asked = []
    for row in rows:
        whole = {**row, EVENT_TIME: datetime.fromisoformat(row[EVENT_TIME])}
        for column in predictor.state.encoder.tensors:
            if whole.get(column.name) is not None:
                whole[column.name] = np.resize(whole[column.name], math.prod(column.shape)).tolist()
        asked.append(whole)
    return np.array([_numbers(answer) for answer in predictor.answer(asked)], np.float64)


def _numbers(answer: Mapping[str, Any]) -> list[float]:
    if "probabilities" in answer:
        return list(answer["probabilities"].values())
    return [answer["probability"] if "probability" in answer else answer["value"]]


def _off(predictor: Predictor, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """By how much, as a share of what is usual; infinite where one is not finite and the other is."""
    scale = 1.0
    if predictor.task == "regression":
        scale = predictor.state.encoder.target_std + np.abs(wanted)
    with np.errstate(invalid="ignore"):
        off = np.abs(found - wanted) / scale
    return np.where(np.isfinite(found) & np.isfinite(wanted), off, np.inf)
