"""A version that answers: the same code predicts offline and online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from cltrain.batch import Batch
from cltrain.data.encoder import request_table
from cltrain.models.build import build_model
from cltrain.storage import Storage
from cltrain.task import predictions, row_losses
from cltrain.train.state import State, load_state

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Predictor:
    """Weights with the vocabulary and normalisation that belong to them, on a `device`. Calls are thread-safe."""

    state: State
    model: nn.Module
    device: torch.device = CPU

    @classmethod
    def of(cls, state: State, device: torch.device = CPU) -> Predictor:
        model = build_model(state.model, state.encoder.spec)
        model.load_state_dict(state.served_weights)
        return cls(state, model.eval().to(device), device)

    @classmethod
    def load(cls, storage: Storage, prefix: str, device: torch.device = CPU) -> Predictor:
        """Raises `DigestError` when a file was altered."""
        return cls.of(load_state(storage, prefix, only_weights=True), device)

    @property
    def task(self) -> str:
        return self.state.encoder.task

    @property
    def size_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.state.weights.values())

    def rows_at_once(self, table: pa.Table) -> int:
        """How many rows of such a table the model takes at once; `score` of slices that begin at multiples of it gives
        the bits of `score` of the whole."""
        return self.state.encoder(table.slice(0, 1)).rows_at_once

    def outputs(self, table: pa.Table) -> tuple[Tensor, Batch]:
        """Raw outputs (N, outputs) for a table of events, and the table as tensors, both in main memory."""
        batch = self.state.encoder(table)
        with torch.inference_mode():
            parts = [self._outputs(part) for part in batch.chunks()] if len(batch) else []
        return torch.cat(parts) if parts else torch.empty(0, self.state.encoder.num_outputs), batch

    def _outputs(self, part: Batch) -> Tensor:
        if self.device == CPU:
            return self.model(**part.inputs)
        return self.model(**part.to(self.device).inputs).cpu()

    def score(self, table: pa.Table) -> Scores:
        """Predictions and losses for labelled events."""
        outputs, batch = self.outputs(table)
        with torch.inference_mode():
            values = predictions(self.task, outputs.double()).numpy()
            values = values.argmax(axis=1).astype(np.float64) if self.task == "multiclass" else values
            losses = row_losses(self.task, outputs.double(), batch.target).numpy()
        target = batch.target.double().numpy()
        if self.task == "regression":
            mean, std = self.state.encoder.target_mean, self.state.encoder.target_std
            values, target, losses = values * std + mean, target * std + mean, losses * std**2
        return Scores(self.task, values, target, losses)

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predictions for requests, one dict of features a row: `probability` of the positive class, `probabilities` by
        class and the likeliest `label`, or `value`. Raises `DataError` that names the row and the feature where a
        value is not of its kind, such as `rows[0].features.x must be a number`."""
        outputs, _ = self.outputs(request_table([dict(row) for row in rows], self.state.encoder))
        values = predictions(self.task, outputs.double()).tolist()
        if self.task == "binary":
            return [{"probability": p, "label": int(p >= 0.5)} for p in values]
        if self.task == "multiclass":
            classes = self.state.encoder.classes
            return [
                {"probabilities": dict(zip(classes, row, strict=True)), "label": classes[int(np.argmax(row))]}
                for row in values
            ]
        mean, std = self.state.encoder.target_mean, self.state.encoder.target_std
        return [{"value": v * std + mean} for v in values]


@dataclass(frozen=True)
class Scores:
    """For N labelled rows, all (N,) float64: predictions (probability, value, or index of the likeliest class),
    target, and losses in nats or squared units of the label."""

    task: str
    predictions: np.ndarray
    target: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.target)
