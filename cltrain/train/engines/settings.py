"""Which engine trains: the settings of the group `engine`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from cltrain.errors import ConfigError
from cltrain.train.engines.ddp import DDP
from cltrain.train.engines.deepspeed import DeepSpeed
from cltrain.train.engines.plain import Plain


@dataclass(frozen=True, kw_only=True)
class AutoEngine:
    """`ddp` where there are several workers, and one process by itself where there is one."""

    offers = Plain.offers
    min_workers = 0

    def here(self, device: torch.device) -> Plain:
        """The engine of this process."""
        if _in_group() and dist.get_world_size() > 1:
            return DDP.of_process_group(_numbered(device))
        return Plain(device=_numbered(device))


@dataclass(frozen=True, kw_only=True)
class DDPEngine:
    """Every worker keeps the whole model; gradients are averaged."""

    offers = DDP.offers
    min_workers = 1

    def here(self, device: torch.device) -> Plain:
        _require_group("ddp")
        return DDP.of_process_group(_numbered(device))


@dataclass(frozen=True, kw_only=True)
class FSDPEngine:
    """Every worker keeps a part of each parameter, of its gradient and of the optimizer's state (FSDP2).

    unit_elements: a block of the model with at least so many parameters is gathered on its own, when it is its turn;
    the rest of the model is gathered at once. 0: everything at once.
    """

    unit_elements: int = 1_000_000

    offers = Plain.offers - {"compile"}
    min_workers = 1

    def __post_init__(self) -> None:
        if self.unit_elements < 0:
            raise ConfigError(f"engine.unit_elements must be 0 or more parameters, not {self.unit_elements}")

    def here(self, device: torch.device) -> Plain:
        from cltrain.train.engines.fsdp import FSDP  # half a second, which the other engines need not spend

        _require_group("fsdp")
        return FSDP.of_process_group(_numbered(device), unit_elements=self.unit_elements)


@dataclass(frozen=True, kw_only=True)
class DeepSpeedEngine:
    """ZeRO (Rajbhandari et al. 2020). Every worker keeps a part of the optimizer's state (stage 1), of the gradients
    too (2), of the parameters too (3). Needs the extra `deepspeed`."""

    stage: int = 2

    offers = DeepSpeed.offers
    min_workers = 1

    def __post_init__(self) -> None:
        if self.stage not in (1, 2, 3):
            raise ConfigError(f"engine.stage must be 1, 2 or 3, not {self.stage}")

    def here(self, device: torch.device) -> Plain:
        _require_group("deepspeed")
        return DeepSpeed.of_process_group(_numbered(device), stage=self.stage)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _require_group(name: str) -> None:
    if not _in_group():
        raise ConfigError(
            f"engine={name} trains on a group of workers, and this process is in none: set cluster.workers to 1 or "
            "more, or engine=auto"
        )


def _numbered(device: torch.device) -> torch.device:
    """The very device of this process, where there are several of its type."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
