"""The value of freshness: how much quality is lost as a model ages, and how often to update."""

from cltrain.freshness.settings import Freshness, Prices

__all__ = ["Freshness", "Prices"]
