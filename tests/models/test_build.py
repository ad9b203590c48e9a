"""Models are made from settings and the shape of the data; what cannot be made is said."""

from __future__ import annotations

import pytest
import torch

from cltrain.batch import InputSpec
from cltrain.errors import ConfigError
from cltrain.models import TabularNet
from cltrain.models.build import build_model, supports_incremental

SPEC = InputSpec(num_columns=2, num_indicators=1, edges=((-1.0, 0.0, 1.0), (0.0,)), cardinalities=(4, 3), num_outputs=2)
TABULAR = {"_target_": "cltrain.models.TabularNet", "name": "x"}


def nothing() -> None:
    return None


class Plain(torch.nn.Module):
    supports_incremental = False

    def __init__(self, num_outputs: int, width: int = 3) -> None:
        super().__init__()
        self.made_with = (num_outputs, width)


def test_what_a_model_asks_for_it_gets() -> None:
    model = build_model({"_target_": f"{__name__}.Plain", "width": 5, "hidden": [1]}, SPEC)
    assert model.made_with == (2, 5)
    assert not supports_incremental({"_target_": f"{__name__}.Plain"})
    assert supports_incremental(TABULAR)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "???"}, "model._target_ is not set"),
        ({}, "model._target_ is not set"),
        ({"_target_": "nowhere.Net"}, "model._target_=nowhere.Net cannot be imported"),
        ({"_target_": f"{__name__}.Plain", "widht": 5}, "cannot be made with ['widht']"),
        ({"_target_": f"{__name__}.nothing"}, "gives NoneType, which is not a torch.nn.Module"),
        (TABULAR | {"dropout": 1.0}, "model.dropout between 0 and 1"),
        (TABULAR | {"hidden": [0]}, "each of model.hidden must be 1 or more"),
    ],
)
def test_what_is_wrong_is_said(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(settings, SPEC)
    assert message in str(caught.value)


def test_numbers_are_piecewise_linear_and_clipped() -> None:
    piecewise = TabularNet(SPEC).piecewise
    assert piecewise.num_features == 2
    found = piecewise(torch.tensor([[-3.0, 9.0], [-0.5, 0.0], [0.25, 0.0], [7.0, 0.0]]))
    assert found.tolist() == [[0.0, 0.0], [0.5, 0.0], [1.0, 0.25], [1.0, 1.0]]


def test_a_table_without_anything_that_varies_has_a_model() -> None:
    model = TabularNet(InputSpec(num_columns=0, num_indicators=0, edges=(), cardinalities=(), num_outputs=1))
    outputs = model(numeric=torch.zeros(3, 0), categorical=torch.zeros(3, 0, dtype=torch.int64))
    assert outputs.shape == (3, 1)


def test_the_first_predictions_are_the_base_rate() -> None:
    for task, target, expected in (
        ("binary", torch.tensor([0.0] * 9 + [1.0]), [torch.logit(torch.tensor(1.5 / 11)).item()] * 2),
        ("binary", torch.zeros(99), [torch.logit(torch.tensor(0.005)).item()] * 2),
        ("multiclass", torch.tensor([0, 0, 1, 2]), torch.log(torch.tensor([2.5, 1.5]) / 4).tolist()),
        ("regression", torch.tensor([1.0, 2.0]), [1.5, 1.5]),
    ):
        model = TabularNet(SPEC)
        model.start_at(task, target)
        assert model.head.bias.tolist() == pytest.approx(expected)
