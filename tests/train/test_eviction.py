"""Where a vocabulary is full, a new category begins afresh in the place of an old one."""

from __future__ import annotations

import dataclasses

import torch

from cltrain.batch import UNKNOWN
from cltrain.data.vocabulary import FIRST
from cltrain.methods import EWC
from tests.train.made import TRAINING, events, schema, update

STILL = dataclasses.replace(TRAINING, learning_rate=1e-12, weight_decay=0.0)


def test_nothing_of_the_old_category_is_left_in_its_place() -> None:
    described = schema()
    described = dataclasses.replace(described, columns=dataclasses.replace(described.columns, max_categories=3))
    trained = dataclasses.replace(TRAINING, epochs=3)
    parent = update(events(200, shops="aabbc"), None, EWC(), trained, described=described).state
    rows = events(50, seed=1, shops="abd")
    child, alone = (
        update(rows, parent, EWC(decay=decay), STILL, seed=1, described=described).state for decay in (1.0, 0.0)
    )
    column = child.encoder.categorical[0]
    assert set(column.categories) == {"a", "b", "d"}
    place, stays = column.places["d"], column.places["a"]
    assert parent.encoder.categorical[0].categories[place - FIRST] == "c"
    name = "embeddings.0.weight"
    torch.testing.assert_close(child.weights[name][place], parent.weights[name][UNKNOWN])
    torch.testing.assert_close(child.weights[name][stays], parent.weights[name][stays])
    torch.testing.assert_close(child.method.tensors["anchor"][name][place], child.weights[name][place])
    importance, of_these_rows = child.method.tensors["fisher"][name], alone.method.tensors["fisher"][name]
    torch.testing.assert_close(importance[place], of_these_rows[place])
    assert (importance[stays] > of_these_rows[stays]).all()
