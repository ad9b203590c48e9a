"""Ranked lists, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from cltrain.evaluate.ranking import mrr, ndcg, recall


@pytest.mark.parametrize("k", [1, 3, 50])
def test_ndcg_agrees_with_scikit_learn(k: int) -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 12, 40)
    groups = np.repeat(np.arange(40), sizes)
    scores, relevance = generator.normal(size=len(groups)), generator.integers(0, 4, len(groups)).astype(float)
    relevance[sizes[:1].sum() :] += (np.arange(len(groups)) % 7 == 0)[sizes[:1].sum() :]
    mixed = generator.permutation(len(groups))
    found = ndcg(scores[mixed], relevance[mixed], groups[mixed], k)
    for group in range(40):
        of = groups == group
        if relevance[of].any():
            assert found[group] == pytest.approx(ndcg_score(relevance[of][None], scores[of][None], k=k))
        else:
            assert np.isnan(found[group])


def test_by_hand() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.3, 0.4, 0.3, 0.2, 0.1])
    clicked = np.array([0, 0, 1, 0, 0, 0, 1, 0, 1.0])
    assert mrr(scores, clicked, groups).tolist() == pytest.approx([1 / 2, np.nan, 1 / 2], nan_ok=True)
    assert recall(scores, clicked, groups, 2).tolist() == pytest.approx([1, np.nan, 1 / 2], nan_ok=True)
    assert recall(scores, clicked, groups, 1).tolist() == pytest.approx([0, np.nan, 0], nan_ok=True)


def test_a_constant_score_earns_nothing_by_the_order_of_rows() -> None:
    clicked, groups = np.array([1.0, 0, 0, 0]), np.zeros(4, int)
    assert mrr(np.zeros(4), clicked, groups).tolist() == [1 / 4]
    assert recall(np.zeros(4), clicked, groups, 3).tolist() == [0]
