"""What the simulations share: rows, and when a boundary is first reached."""

from __future__ import annotations

from typing import Any

import numpy as np

LEVEL, POWER, FIRST = 0.05, 0.8, 100
Row = dict[str, Any]


def row(name: str, value: Any = None, ratio: Any = None, bar: str = "", runs: int = 0, interval: Any = None) -> Row:
    found = {"name": name, "value": value, "ratio": ratio, "interval": interval}
    numbers = {
        key: np.asarray(v).tolist() if not isinstance(v, str) else v for key, v in found.items() if v is not None
    }
    return {**numbers, **({"bar": bar} if bar else {}), "runs": runs}


def first_look(crossed: np.ndarray) -> np.ndarray:
    """(R,) how many units were there when the boundary was first reached; infinite if it never was."""
    return np.where(crossed.any(1), crossed.argmax(1) + 1.0, np.inf)
