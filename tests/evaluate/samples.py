"""Made-up answers on made-up rows, for the tests of metrics."""

from __future__ import annotations

import numpy as np

from cltrain.evaluate.sample import Sample


def sample(task: str, rows: int = 400, seed: int = 0, noise: float = 1.0, weighted: bool = False) -> Sample:
    """Answers on the rows of `seed`; another `noise` makes other answers on the same rows."""
    generator = np.random.default_rng(seed)
    score, weights = generator.normal(size=rows), generator.uniform(0.2, 5.0, rows)
    wrong = np.random.default_rng([seed, 7]).normal(size=rows)
    if task == "binary":
        y = (generator.random(rows) < 1 / (1 + np.exp(-1.5 * score))).astype(float)
        p = 1 / (1 + np.exp(-np.round(1.5 * score + noise * wrong, 1)))
        losses = -np.log(np.where(y > 0, p, 1 - p))
    elif task == "multiclass":
        y = generator.integers(0, 4, rows).astype(float)
        p = np.where(np.abs(noise * wrong) < 1, y, (y + 1) % 5)
        losses = np.abs(wrong)
    else:
        y = 10 + 3 * score
        p = y + noise * wrong
        losses = np.square(p - y)
    return Sample(task, p, y, losses, weights if weighted else None)
