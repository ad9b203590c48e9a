"""Memories: the rows kept for replay, as an Arrow table that one can open and read."""

from cltrain.memory.reservoir import Reservoir

__all__ = ["Reservoir"]
