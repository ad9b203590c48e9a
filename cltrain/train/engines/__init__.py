"""Engines: how many processes take a step together. A method's `needs` must be among what an engine `offers`."""

from cltrain.train.engines.ddp import DDP
from cltrain.train.engines.plain import Plain

__all__ = ["DDP", "Plain"]
