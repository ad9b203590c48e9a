"""Memories: the rows kept for replay, as an Arrow table that one can open and read."""

from cltrain.memory.base import Memory, See, Seen
from cltrain.memory.class_balanced import ClassBalanced
from cltrain.memory.diverse import Diverse
from cltrain.memory.herding import Herding
from cltrain.memory.loss_weighted import LossWeighted
from cltrain.memory.recency import Recency
from cltrain.memory.reservoir import Reservoir
from cltrain.memory.ring import Ring
from cltrain.memory.stratified import Stratified

__all__ = [
    "ClassBalanced",
    "Diverse",
    "Herding",
    "LossWeighted",
    "Memory",
    "Recency",
    "Reservoir",
    "Ring",
    "See",
    "Seen",
    "Stratified",
]
