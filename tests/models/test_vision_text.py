"""Models for images and for text: their shapes, what they ignore, and what they learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cltrain.batch import InputSpec, TensorInput, TextInput
from cltrain.errors import ConfigError
from cltrain.models import SmallCNN, TabularNet, TextTransformer
from cltrain.models.build import build_model, check_model
from cltrain.models.vision import image_shape

CNN = {"_target_": "cltrain.models.SmallCNN"}
TEXT = {"_target_": "cltrain.models.TextTransformer", "dim": 8, "heads": 2}


def spec(*inputs: TensorInput | TextInput, num_outputs: int = 3, columns: bool = True) -> InputSpec:
    return InputSpec(
        num_columns=int(columns),
        num_indicators=0,
        edges=((-1.0, 0.0, 1.0),) if columns else (),
        cardinalities=(4,) if columns else (),
        num_outputs=num_outputs,
        tensors=tuple(i for i in inputs if isinstance(i, TensorInput)),
        texts=tuple(i for i in inputs if isinstance(i, TextInput)),
    )


def image(*shape: int, name: str = "image") -> TensorInput:
    return TensorInput(name=name, shape=shape)


def words(name: str = "words", length: int = 6) -> TextInput:
    return TextInput(name=name, vocabulary=50, max_tokens=length)


def rows(of: InputSpec, count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {
        "numeric": torch.randn(count, of.num_numeric, generator=generator),
        "categorical": torch.randint(0, 4, (count, len(of.cardinalities)), generator=generator),
    }
    made |= {t.name: torch.rand(count, *t.shape, generator=generator) for t in of.tensors}
    for text in of.texts:
        tokens = torch.randint(1, text.vocabulary, (count, text.max_tokens), generator=generator)
        lengths = torch.arange(count).unsqueeze(1) % (text.max_tokens + 1)
        made[text.name] = torch.where(torch.arange(text.max_tokens) < lengths, tokens, 0)
    return made


@pytest.mark.parametrize(
    ("shape", "given", "found"),
    [
        ((784,), None, (1, 28, 28, False)),
        ((784,), (4, 14, 14), (4, 14, 14, False)),
        ((300,), (4, 14, 14), None),
        ((1,), None, None),
        ((5, 7), None, (1, 5, 7, False)),
        ((3, 32, 32), None, (3, 32, 32, False)),
        ((32, 32, 3), None, (3, 32, 32, True)),
        ((3, 3, 3), None, (3, 3, 3, False)),
        ((2, 3, 4, 5), None, None),
    ],
)
def test_what_is_taken_as_an_image(shape: tuple[int, ...], given: tuple[int, ...] | None, found: object) -> None:
    assert image_shape(shape, given) == found


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2, 2), (28, 28), (3, 5, 9), (9, 8, 3), (49,), (7,), (2, 2, 2, 2)])
def test_any_shape_gives_one_output_a_class(shape: tuple[int, ...], columns: bool) -> None:
    of = spec(image(*shape), columns=columns)
    model = build_model(CNN, of)
    assert model(**rows(of)).shape == (5, 3)
    assert model(**rows(of, 0)).shape == (0, 3)


def test_channels_may_be_first_or_last() -> None:
    first, last = build_model(CNN, spec(image(3, 8, 6))), build_model(CNN, spec(image(8, 6, 3)))
    last.load_state_dict(first.state_dict())
    inputs = rows(spec(image(3, 8, 6)))
    turned = inputs | {"image": inputs["image"].permute(0, 2, 3, 1)}
    torch.testing.assert_close(first(**inputs), last(**turned))


@pytest.mark.parametrize(
    ("settings", "of"),
    [(CNN, spec(image(6, 6), image(4, name="vector"))), (TEXT, spec(words(), words("title", 3)))],
)
class TestBoth:
    def test_every_column_matters(self, settings: Mapping[str, Any], of: InputSpec) -> None:
        model, inputs = build_model(settings, of).eval(), rows(of)
        before = model(**inputs)
        for name, value in inputs.items():
            other = (value + 1) % 4 if name in ("categorical", "words", "title") else value + 1
            assert not torch.allclose(model(**inputs | {name: other})[-1], before[-1]), name

    def test_a_row_is_the_same_alone_and_among_others(self, settings: Mapping[str, Any], of: InputSpec) -> None:
        model, inputs = build_model(settings, of).eval(), rows(of)
        alone = [model(**{name: value[i : i + 1] for name, value in inputs.items()}) for i in range(5)]
        torch.testing.assert_close(torch.cat(alone), model(**inputs))

    def test_gradients_of_each_row_by_vmap_are_those_of_one_by_one(
        self, settings: Mapping[str, Any], of: InputSpec
    ) -> None:
        model, inputs, target = build_model(settings, of).eval(), rows(of), torch.tensor([0, 1, 2, 0, 1])
        parameters = {n: p.detach() for n, p in model.named_parameters()}

        def loss(params: dict[str, Tensor], row: dict[str, Tensor], label: Tensor) -> Tensor:
            outputs = functional_call(model, params, kwargs={n: v.unsqueeze(0) for n, v in row.items()})
            return nn.functional.cross_entropy(outputs, label.unsqueeze(0))

        with sdpa_kernel(SDPBackend.MATH):  # vmap knows no rule for the fused kernel of the CPU
            found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, target)
        for i in range(5):
            one = grad(loss)(parameters, {n: v[i] for n, v in inputs.items()}, target[i])
            for name, value in one.items():
                torch.testing.assert_close(found[name][i], value, atol=1e-6, rtol=1e-4)

    def test_it_can_be_compiled_whole(self, settings: Mapping[str, Any], of: InputSpec) -> None:
        model, inputs = build_model(settings, of), rows(of)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs), model(**inputs))
        torch.compiler.reset()


def test_padding_is_not_seen_and_nothing_at_all_is_finite() -> None:
    model = TextTransformer(spec(words()), dim=8, heads=2).eval()
    inputs = rows(spec(words()))
    assert (inputs["words"][0] == 0).all()
    before = model(**inputs)
    assert torch.isfinite(before).all()
    with torch.no_grad():
        next(iter(model.tokens)).weight[0] = 100.0  # what stands for padding
    torch.testing.assert_close(model(**inputs)[1:], before[1:])
    model(**inputs).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_order_of_words_matters() -> None:
    model, inputs = TextTransformer(spec(words()), dim=8, heads=2).eval(), rows(spec(words()))
    turned = inputs | {"words": inputs["words"].clone()}
    turned["words"][4, :4] = inputs["words"][4, :4].flip(0)
    assert not torch.allclose(model(**turned)[4], model(**inputs)[4])


@pytest.mark.parametrize(
    ("settings", "of", "message"),
    [
        (CNN, spec(), "model=cnn needs a column of tensors"),
        (CNN, spec(image(4, 4), words()), "model=cnn cannot take the text in words"),
        (
            CNN | {"shape": [1, 3, 3]},
            spec(image(4, 4)),
            "model.shape=[1, 3, 3] holds 9 numbers, but the data has: image",
        ),
        (
            CNN | {"shape": [3, 3]},
            spec(image(9)),
            "model.shape [channels, height, width] or null, not [16, 32] and [3, 3]",
        ),
        (CNN | {"channels": [8]}, spec(image(9)), "model.channels must be two numbers"),
        (TEXT, spec(), "model=text needs a column of text, and there is none: name it, data.text='[COLUMN]'"),
        (TEXT, spec(words(), image(4)), "model=text cannot take the tensors in image"),
        (TEXT | {"heads": 3}, spec(words()), "model.dim must be a multiple of model.heads"),
        (
            {"_target_": "cltrain.models.TabularNet"},
            spec(image(4)),
            "cltrain.models.TabularNet does not take column image, which holds tensors: use model=cnn",
        ),
        ({"_target_": "cltrain.models.TabularNet"}, spec(words()), "column words, which holds text: use model=text"),
    ],
)
def test_what_a_model_cannot_take_is_said(settings: Mapping[str, Any], of: InputSpec, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(settings, of)
    assert message in str(caught.value)


class Bare(nn.Module):
    """A user's model that has a parameter of the column's name."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, num_outputs)

    def forward(self, numeric: Tensor, categorical: Tensor, image: Tensor) -> Tensor:
        return self.layer(image)


def test_a_model_of_ones_own_takes_columns_by_their_names() -> None:
    own = {"_target_": f"{__name__}.Bare"}
    check_model(own, spec(image(4)))
    assert build_model(own, spec(image(4)))(**rows(spec(image(4)))).shape == (5, 3)
    with pytest.raises(ConfigError, match="give its forward a parameter words"):
        build_model(own, spec(image(4), words()))


@pytest.mark.parametrize(
    ("settings", "of", "message"),
    [
        (CNN, spec(), "model=cnn needs a column of tensors"),
        (TEXT, spec(), "model=text needs a column of text"),
        ({"_target_": "cltrain.models.TabularNet"}, spec(image(4)), "does not take column image"),
    ],
)
def test_what_a_model_cannot_take_is_known_before_it_is_made(
    settings: Mapping[str, Any], of: InputSpec, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_model(settings, of)


def accuracy_after(model: nn.Module, inputs: dict[str, Tensor], target: Tensor, steps: int = 60) -> float:
    """On the last quarter of the rows, having learned the others in full batches."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    cut = len(target) * 3 // 4
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(**{n: v[:cut] for n, v in inputs.items()}), target[:cut]).backward()
        optimizer.step()
    found = model.eval()(**{n: v[cut:] for n, v in inputs.items()}).argmax(dim=1)
    return float((found == target[cut:]).float().mean())


def test_a_bright_corner_is_learned() -> None:
    torch.manual_seed(0)
    of = spec(image(8, 8), num_outputs=4, columns=False)
    inputs, target = rows(of, 400), torch.randint(0, 4, (400,))
    for i, label in enumerate(target.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        inputs["image"][i, top : top + 4, left : left + 4] += 0.5
    assert accuracy_after(SmallCNN(of, channels=(4, 8)), inputs, target) > 0.9


def test_a_word_is_learned_wherever_it_stands() -> None:
    torch.manual_seed(0)
    of = spec(words(length=8), num_outputs=2, columns=False)
    inputs, generator = rows(of, 400), np.random.default_rng(0)
    tokens = torch.randint(5, 50, (400, 8))
    target = torch.randint(0, 2, (400,))
    tokens[torch.arange(400), torch.from_numpy(generator.integers(0, 8, 400))] = 1 + target
    assert accuracy_after(TextTransformer(of, dim=16, heads=2, layers=1), inputs | {"words": tokens}, target) > 0.9


def test_parameters_of_tables_have_the_names_they_had() -> None:
    assert [n for n, _ in TabularNet(spec(), hidden=(5,)).named_parameters()] == [
        "embeddings.0.weight",
        "body.0.weight",
        "body.0.bias",
        "head.weight",
        "head.bias",
    ]
