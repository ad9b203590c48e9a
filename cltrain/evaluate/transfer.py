"""The transfer matrix version × window in numbers: what learning on one window did to the others.

The measures are those of Lopez-Paz and Ranzato (2017) and Chaudhry et al. (2018), of losses, where lower is better, so
that every sign is turned: transfer above 0 is good, forgetting above 0 is bad, both in the units of the loss. A version
is measured on no window before it came, so the first one measured on a window is the first that learned from it. Cells
that were never measured are left out of the means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cltrain.records import Json

Cells = Sequence[Json]  # of one card: window, rows, loss, and champion and constant where they are known


@dataclass(frozen=True)
class Transfer:
    """losses (V, W), NaN where not measured; before (W,): the loss on a window of the champion that met it, before it
    was learned from; constant (W,): the least loss of one and the same answer for all its rows; rows (W,)."""

    versions: tuple[str, ...]
    windows: tuple[int, ...]
    losses: np.ndarray
    before: np.ndarray
    constant: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, cards: Sequence[tuple[str, Cells]]) -> Transfer:
        """From versions in the order in which they were made, with the `transfer` of their report cards: versions of
        one line, such as the champions, as the measures speak of one learner."""
        windows = tuple(sorted({cell["window"] for _, cells in cards for cell in cells}))
        place = {window: i for i, window in enumerate(windows)}
        losses = np.full((len(cards), len(windows)), np.nan)
        before, constant = np.full((2, len(windows)), np.nan)
        rows = np.zeros(len(windows))
        for i, (_, cells) in enumerate(cards):
            newest = max((cell["window"] for cell in cells), default=None)
            for cell in cells:
                at = place[cell["window"]]
                losses[i, at], rows[at] = cell["loss"], cell["rows"]
                if cell.get("constant") is not None:
                    constant[at] = cell["constant"]
                if cell["window"] == newest and cell.get("champion") is not None:
                    before[at] = cell["champion"]
        return cls(tuple(name for name, _ in cards), windows, losses, before, constant, rows)

    def summary(self) -> Json:
        """average: mean loss of the last version over the windows it was measured on. backward: by how much the last
        version is better on a window than the first one measured there (below 0 it forgot). forward: by how much the
        champion that met a window was better there than the best constant answer (Lopez-Paz and Ranzato take an
        untrained network, whose loss says nothing of ours). forgetting: by how much the last version is worse on a
        window than the best one before it. None where no cell says it."""
        last, earlier = (self.losses[-1], self.losses[:-1]) if len(self.losses) else (np.zeros(0), np.zeros((0, 0)))
        known = ~np.isnan(earlier)
        first, best = np.full((2, len(last)), np.nan)
        for window in np.flatnonzero(known.any(axis=0)):
            first[window] = earlier[known[:, window].argmax(), window]
            best[window] = np.nanmin(earlier[:, window])
        return {
            "average": _mean(last),
            "backward": _mean(first - last),
            "forward": _mean(self.constant - self.before),
            "forgetting": _mean(last - best),
        }

    def composite(self) -> list[Json]:
        """The curve of the champion of the moment: for each window its `loss` there before it was learned from, and
        `so_far`, the mean over the rows of all windows up to it."""
        known = ~np.isnan(self.before)
        weight = np.cumsum(np.where(known, self.rows, 0.0))
        sums = np.cumsum(np.where(known, self.rows * np.nan_to_num(self.before), 0.0))
        return [
            {
                "window": self.windows[i],
                "rows": int(self.rows[i]),
                "loss": float(self.before[i]),
                "so_far": float(sums[i] / weight[i]),
            }
            for i in np.flatnonzero(known)
        ]


def constant_loss(task: str, target: np.ndarray) -> float:
    """The least mean loss of one answer for all rows: the entropy of the labels in nats, or their variance."""
    if task == "regression":
        return float(target.var())
    counts = np.bincount(target.astype(np.int64))
    share = counts[counts > 0] / len(target)
    return float(-(share * np.log(share)).sum())


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
