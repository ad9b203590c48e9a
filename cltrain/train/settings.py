"""How an update trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError

MAX_EPOCHS = 200  # of a table so small that `min_steps` asks for more


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of one kind of update.

    epochs: passes over the rows. At least `min_steps` steps are taken, by more passes where rows are few.
    batch_size: new rows in a global batch at most, over all ranks; rehearsed rows come on top. Where rows are few it is
    halved until a pass has 8 steps, down to 16. A pass is cut into batches of equal size, to a row.
    learning_rate, weight_decay: of AdamW (Loshchilov and Hutter 2019); only matrices decay, not biases or embeddings.
    schedule: constant, or cosine down to 5 %. max_grad_norm: of the whole gradient, the penalty's part included.
    unknown_rate: share of categories that are hidden, so that the unknown one comes to mean "some category".
    validation_share: of the rows, kept aside to stop early: the weights of the best pass are kept, and training ends
    after `patience` passes without a better one (more where passes are short). 0 trains on all rows for all passes.
    """

    epochs: int = 1
    min_steps: int = 0
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float | None = 1.0
    unknown_rate: float = 0.015
    validation_share: float = 0.0
    patience: int = 4

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("min_steps", 0), ("batch_size", 2)):
            if getattr(self, name) < low:
                raise ConfigError(f"train.{name} must be {low} or more, not {getattr(self, name)}")
        for name, value in (("learning_rate", self.learning_rate), ("max_grad_norm", self.max_grad_norm)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"train.{name} must be above 0, not {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"train.weight_decay must be 0 or more, not {self.weight_decay}")
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"train.schedule must be constant or cosine, not {self.schedule!r}")
        for name in ("unknown_rate", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.patience < 1:
            raise ConfigError(f"train.patience must be 1 pass or more, not {self.patience}")

    def plan(self, rows: int) -> tuple[int, int]:
        """Batch size and number of epochs for this many rows."""
        size = self.batch_size
        while size > 16 and rows < 8 * size:
            size = max(16, size // 2)
        steps = max(1, math.ceil(rows / size))
        return size, max(self.epochs, min(MAX_EPOCHS, math.ceil(self.min_steps / steps)))

    def validation_rows(self, rows: int) -> int:
        """How many of `rows` are kept aside to stop early; none where they are too few to tell."""
        wanted = min(5_000, max(30, round(rows * self.validation_share)))
        return wanted if self.validation_share and rows >= 2 * wanted else 0

    def passes_without_gain(self, epochs: int) -> int:
        """How many passes in a row may bring no better validation loss."""
        return self.patience * max(1, epochs // 20)

    def learning_rate_at(self, progress: float) -> float:
        """Learning rate when a share `progress` of all steps is done."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True, kw_only=True)
class Recalibrate:
    """When to train from scratch again, and on what: every `every` windows (None: never) on the `history` before now,
    such as 90d (None: all of it)."""

    every: int | None = 12
    history: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ConfigError(f"recalibrate.every must be 1 or more windows, or null for never, not {self.every}")
        if self.history is not None:
            try:
                parse_duration(self.history)
            except ConfigError as error:
                raise ConfigError(f"recalibrate.history: {error}") from error

    def is_due(self, window: int) -> bool:
        return self.every is not None and window % self.every == 0

    def since(self, now: datetime) -> datetime | None:
        return None if self.history is None else now - parse_duration(self.history)
