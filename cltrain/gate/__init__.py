"""Gates: a card in, a verdict with its reasons out. Pure functions."""

from cltrain.gate.non_inferiority import NonInferiority

__all__ = ["NonInferiority"]
