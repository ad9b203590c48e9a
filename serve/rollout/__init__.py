"""How a version reaches traffic: the kinds of roll-out, what moves them on, and what they look at."""

from serve.rollout.kinds import ABTest, BanditTest, Canary, Interleave, Shadow, Swap

__all__ = ["ABTest", "BanditTest", "Canary", "Interleave", "Shadow", "Swap"]
