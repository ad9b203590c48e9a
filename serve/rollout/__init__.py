"""How a version reaches traffic: the kinds of roll-out, what moves them on, and what they look at."""

from serve.rollout.experiments import ABTest, BanditTest, Interleave
from serve.rollout.releases import Canary, Shadow, Swap

__all__ = ["ABTest", "BanditTest", "Canary", "Interleave", "Shadow", "Swap"]
