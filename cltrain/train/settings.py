"""How an update trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args, get_type_hints

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError

MAX_EPOCHS = 200  # of a table so small that `min_steps` asks for more


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of one kind of update.

    epochs: passes over the rows. At least `min_steps` steps are taken, by more passes where rows are few.
    batch_size: new rows in a global batch at most, over all ranks; rehearsed rows come on top. Where rows are few it is
    halved until a pass has 8 steps, down to 16. A pass is cut into batches of equal size, to a row. A batch of one row
    is refused without `per_sample`: it costs as much as one of hundreds.
    accumulate: parts that a batch is passed in, one after another, to save memory.
    optimizer: adamw (Loshchilov and Hutter 2019), adam, sgd, or package.Optimizer of your own, with
    `optimizer_settings`, such as
    `+train.stateful.optimizer_settings={momentum: 0.9}`. weight_decay: of matrices, not of biases or embeddings.
    schedule: constant, linear down to 0, or cosine down to 5 %, after `warmup`, a share of all steps, has led up to
    `learning_rate`. max_grad_norm: of the whole gradient, the penalty's part included.
    precision: bfloat16 runs the forward and backward pass in mixed precision; weights and optimizer stay float32.
    compile: off, or the mode of `torch.compile`, which takes seconds in each update; reduce-overhead takes CUDA graphs
    on a GPU.
    unknown_rate: share of categories that are hidden, so that the unknown one comes to mean "some category".
    validation_share: of the rows, kept aside to stop early: the weights of the best pass are kept, and training ends
    after `patience` passes without a better one (more where passes are short). 0 trains on all rows for all passes.
    rows_on: where the rows wait: device, host (then pinned, and gathered ahead of the step), or auto, which is the
    device while they fill less than half of what is free there. Encoded rows of more than `memory_gib` wait in a file.
    checkpoint_steps: an update that was interrupted goes on from the last multiple of so many steps; None: it begins
    again.
    """

    epochs: int = 1
    min_steps: int = 0
    batch_size: int = 256
    per_sample: bool = False
    accumulate: int = 1
    optimizer: str = "adamw"
    optimizer_settings: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    max_grad_norm: float | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    unknown_rate: float = 0.015
    validation_share: float = 0.0
    patience: int = 4
    rows_on: Literal["auto", "device", "host"] = "auto"
    memory_gib: float = 8.0
    checkpoint_steps: int | None = 1_000

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("min_steps", 0), ("batch_size", 1), ("accumulate", 1), ("patience", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"train.{name} must be {low} or more, not {getattr(self, name)}")
        if self.batch_size == 1 and not self.per_sample:
            raise ConfigError(
                "train.batch_size=1 updates on single rows, which is slow and noisy: make it 2 or more (512 is usual), "
                "or say train.per_sample=true"
            )
        for name in ("learning_rate", "max_grad_norm", "memory_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"train.{name} must be above 0, not {value}")
        if taken := sorted({"lr", "weight_decay"} & set(self.optimizer_settings)):
            given = {"lr": "train.learning_rate", "weight_decay": "train.weight_decay"}[taken[0]]
            raise ConfigError(f"train.optimizer_settings has {taken[0]}, which is {given}: set that")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"train.weight_decay must be 0 or more, not {self.weight_decay}")
        for name in ("schedule", "precision", "compile", "rows_on"):
            choices = get_args(get_type_hints(type(self))[name])
            if getattr(self, name) not in choices:
                raise ConfigError(f"train.{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("unknown_rate", "validation_share", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be between 0 and 1, not {getattr(self, name)}")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ConfigError(f"train.checkpoint_steps must be 1 or more, or null, not {self.checkpoint_steps}")

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
        if progress < self.warmup:
            return self.learning_rate * (progress / self.warmup * 0.99 + 0.01)
        if self.schedule == "constant":
            return self.learning_rate
        past = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "linear":
            return self.learning_rate * (1 - past)
        return self.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * past)) / 2)


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
