"""Engines: how many processes take a step together, and what each of them keeps. A method's `needs` must be among what
an engine `offers`."""

from cltrain.train.engines.ddp import DDP
from cltrain.train.engines.deepspeed import DeepSpeed
from cltrain.train.engines.plain import Plain, Running
from cltrain.train.engines.settings import AutoEngine, DDPEngine, DeepSpeedEngine, FSDPEngine

__all__ = [
    "DDP",
    "AutoEngine",
    "DDPEngine",
    "DeepSpeed",
    "DeepSpeedEngine",
    "FSDPEngine",
    "Plain",
    "Running",
]
