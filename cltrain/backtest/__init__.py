"""Many strategies over the same history: which one to run, and what it costs."""

from cltrain.backtest.settings import Backtest

__all__ = ["Backtest"]
