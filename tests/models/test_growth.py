"""A model with more rows starts where its parent ended, whoever wrote it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cltrain.batch import UNKNOWN, InputSpec, TensorInput, TextInput
from cltrain.errors import UpdateError
from cltrain.models import SmallCNN, TabularNet, TextTransformer
from cltrain.models.embeddings import outputs_and_embeddings
from cltrain.models.growth import copied, forgotten, grow_into, restarted, table_rows
from cltrain.models.head import NEW_CLASSES_SHARE, last_linear


def spec(classes: int = 3, categories: int = 4) -> InputSpec:
    return InputSpec(
        num_columns=2,
        num_indicators=0,
        edges=((-1.0, 1.0), (-1.0, 1.0)),
        cardinalities=(5, categories),
        num_outputs=classes,
        tensors=(TensorInput(name="image", shape=(4, 4)),),
        texts=(TextInput(name="words", vocabulary=9, max_tokens=3),),
    )


def only(of: InputSpec, *, tensors: bool = False, texts: bool = False) -> InputSpec:
    kept = {name: getattr(of, name) for name in ("num_columns", "num_indicators", "edges", "cardinalities")}
    more = {"tensors": of.tensors if tensors else (), "texts": of.texts if texts else ()}
    return InputSpec(**kept, num_outputs=of.num_outputs, **more)


class Own(nn.Module):
    """A user's model, which says nothing of new rows and calls its layers what it likes."""

    def __init__(self, of: InputSpec) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 3) for size in of.cardinalities)
        self.inner = nn.Linear(2 + 3 * len(of.cardinalities), 7)
        self.classifier = nn.Linear(7, of.num_outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        parts = [table(categorical[:, i]) for i, table in enumerate(self.tables)]
        return self.classifier(torch.relu(self.inner(torch.cat([numeric, *parts], dim=1))))


def made(kind: str, of: InputSpec) -> nn.Module:
    if kind == "cnn":
        return SmallCNN(only(of, tensors=True))
    if kind == "text":
        return TextTransformer(only(of, texts=True), dim=4, heads=2).eval()
    return TabularNet(only(of)) if kind == "tabular" else Own(only(of))


def rows(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        "numeric": torch.randn(6, 2, generator=generator),
        "categorical": torch.randint(0, 4, (6, 2), generator=generator),
    }
    more = {
        "cnn": {"image": torch.rand(6, 4, 4, generator=generator)},
        "text": {"words": torch.randint(0, 9, (6, 3), generator=generator)},
    }
    return found | more.get(kind, {})


KINDS = ["tabular", "cnn", "text", "own"]


@pytest.mark.parametrize("kind", KINDS)
def test_old_classes_keep_their_logits_and_new_ones_get_a_small_share(kind: str) -> None:
    before, after, inputs = made(kind, spec()), made(kind, spec(classes=5)), rows(kind)
    grow_into(after, before.state_dict())
    torch.testing.assert_close(after(**inputs)[:, :3], before(**inputs))
    share = after(**inputs).softmax(dim=1)[:, 3:].sum(dim=1)
    assert (share <= NEW_CLASSES_SHARE + 1e-6).all()
    assert (share > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_category_is_taken_as_the_unknown_one(kind: str) -> None:
    before, after, inputs = made(kind, spec()), made(kind, spec(categories=6)), rows(kind)
    grow_into(after, before.state_dict())
    inputs["categorical"][:, 1] = UNKNOWN
    expected = before(**inputs)
    inputs["categorical"][:, 1] = 5
    torch.testing.assert_close(after(**inputs), expected)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(UpdateError, match=r"parameter head.weight was \(3, 32\) and is now \(2, 32\)"):
        grow_into(made("tabular", spec(classes=2)), made("tabular", spec()).state_dict())
    with pytest.raises(UpdateError, match="the model's parameters are not those of its parent"):
        grow_into(made("own", spec()), made("tabular", spec()).state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_reused_place_starts_as_the_unknown_category_and_forgets_what_was_there(kind: str) -> None:
    of, model, inputs = spec(), made(kind, spec()), rows(kind)
    places = table_rows(model, {1: (2, 3)}, of.cardinalities)
    (name,) = places
    assert model.get_parameter(name).shape[0] == 4
    old = {n: v.clone() for n, v in model.state_dict().items()}
    model.load_state_dict(restarted(model.state_dict(), places))
    for n, value in model.state_dict().items():
        kept = [0, 1] if n == name else slice(None)
        assert torch.equal(value[kept] if value.dim() else value, old[n][kept] if value.dim() else old[n])
    inputs["categorical"][:, 1] = UNKNOWN
    unknown = model(**inputs)
    inputs["categorical"][:, 1] = 3
    torch.testing.assert_close(model(**inputs), unknown)
    moments = {f"exp_avg/{name}": torch.ones(4, 6), f"step/{name}": torch.tensor(7.0), name: torch.ones(4, 6)}
    gone = forgotten(moments, places)
    assert gone[name].sum(dim=1).tolist() == gone[f"exp_avg/{name}"].sum(dim=1).tolist() == [6, 6, 0, 0]
    assert gone[f"step/{name}"] == 7
    assert moments[name].sum() == 24, "what was given is left alone"
    anchors = copied({name: torch.zeros(4, 6)}, places, {name: torch.ones(4, 6)})
    assert anchors[name].sum(dim=1).tolist() == [0, 0, 6, 6]
    assert table_rows(model, {}, of.cardinalities) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_the_inputs_of_the_head(kind: str) -> None:
    model, inputs = made(kind, spec()), rows(kind)
    outputs, embeddings = outputs_and_embeddings(model, inputs)
    head = model.get_submodule(last_linear(model) or "")
    torch.testing.assert_close(head(embeddings), outputs)
    torch.testing.assert_close(model(**inputs), outputs)


@pytest.mark.parametrize("kind", ["tabular", "cnn", "text"])
def test_the_first_predictions_are_the_base_rate(kind: str) -> None:
    model = made(kind, spec())
    model.start_at("multiclass", torch.tensor([0, 0, 1, 2]))  # type: ignore[operator]
    expected = [math.log(count / 5.5) for count in (2.5, 1.5, 1.5)]
    assert model.get_parameter("head.bias").tolist() == pytest.approx(expected)
