"""cltrain keeps deployed models fresh: it decides when an update is worth it, trains it without forgetting, proves
that it is better, records where it came from, and swaps it into live traffic. Start with `cltrain/loop.py`."""

__version__ = "0.1.0"
