"""Metrics of ranked lists: one value a group, vectorised over all rows.

scores, relevance, groups: (N,); a row is relevant if its label is above 0. Each returns (G,) values in the order of the
groups' numbers, NaN for a list without a relevant row. Of rows with one score the least relevant counts as first, so
that a constant score earns nothing by the order of rows.
"""

from __future__ import annotations

import numpy as np


def ndcg(scores: np.ndarray, relevance: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k, with the label as the gain (Järvelin and Kekäläinen
    2002)."""
    gains = np.maximum(relevance, 0.0)
    best = _gain(np.lexsort((-gains, groups)), gains, groups, k)
    with np.errstate(invalid="ignore"):
        return _gain(_order(scores, gains, groups), gains, groups, k) / np.where(best > 0, best, np.nan)


def mrr(scores: np.ndarray, relevance: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One by the rank of the first relevant row."""
    order = _order(scores, relevance, groups)
    ranks, relevant = _ranks(groups[order]), relevance[order] > 0
    found = np.full(_count(groups), np.nan)
    # Backwards, so that the first one is written last.
    found[groups[order][relevant][::-1]] = 1.0 / (ranks[relevant][::-1] + 1)
    return found


def recall(scores: np.ndarray, relevance: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Share of the relevant rows that are among the first k."""
    order = _order(scores, relevance, groups)
    relevant = (relevance[order] > 0).astype(float)
    there = np.bincount(groups[order], relevant, _count(groups))
    found = np.bincount(groups[order], relevant * (_ranks(groups[order]) < k), _count(groups))
    return found / np.where(there > 0, there, np.nan)


def _order(scores: np.ndarray, relevance: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.lexsort((relevance, -scores, groups))


def _gain(order: np.ndarray, gains: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    ranks = _ranks(groups[order])
    return np.bincount(groups[order], gains[order] * (ranks < k) / np.log2(ranks + 2), _count(groups))


def _ranks(ordered: np.ndarray) -> np.ndarray:
    """(N,) the place of each row in its group, from 0; rows of a group stand together."""
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))


def _count(groups: np.ndarray) -> int:
    return int(groups.max()) + 1 if len(groups) else 0
