"""Learning without forgetting (Li and Hoiem 2016): on new rows, say what the parent says of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cltrain.errors import ConfigError
from cltrain.methods.base import Joined, Method
from cltrain.task import distillation


@dataclass(frozen=True, kw_only=True)
class LwF(Method):
    """The loss gains `strength` times the mean distillation loss of the new rows against the outputs of the parent,
    softened by `temperature`. They are taken once, before the first step, so that a step costs no second model."""

    strength: float = 1.0
    temperature: float = 2.0

    reads = frozenset({"parent"})

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ConfigError(f"method.strength must be 0 or more, not {self.strength}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"method.temperature must be above 0, not {self.temperature}")

    def terms(self, joined: Joined) -> dict[str, Tensor]:
        parent = joined.new.get("parent")
        if parent is None or not self.strength:
            return {}
        loss = distillation(joined.task, joined.outputs[: joined.fresh], parent, self.temperature)
        return {"parent": self.strength * joined.mean_new(loss)}
