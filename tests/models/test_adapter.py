"""Adapters: what trains, what is stored, and that folding them in changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel

from cltrain.batch import InputSpec, TensorInput, TextInput
from cltrain.errors import ConfigError
from cltrain.models import SmallCNN, TabularNet, TextTransformer
from cltrain.models.adapter import LoRA, adapt, folded, joined, plain_name, split
from cltrain.models.growth import grow_into

pytest.importorskip("peft")


def spec(shops: int = 5, classes: int = 3, **inputs: Any) -> InputSpec:
    return InputSpec(
        num_columns=2,
        num_indicators=0,
        edges=((-1.0, 0.0, 1.0), (-1.0, 1.0)),
        cardinalities=(shops,),
        num_outputs=classes,
        **inputs,
    )


class Encoded(nn.Module):
    """A user's model, with torch's own transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


COLUMNS = {"numeric": torch.linspace(-1, 1, 12).reshape(6, 2), "categorical": torch.arange(6).reshape(6, 1) % 5}
TOKENS = torch.arange(30).reshape(6, 5) % 11
MODELS = {
    "tabular": (lambda: TabularNet(spec(), hidden=(8, 6), embedding_dim=2), COLUMNS),
    "text": (
        lambda: TextTransformer(
            spec(texts=(TextInput(name="words", vocabulary=11, max_tokens=5),)), dim=8, heads=2, layers=2
        ),
        COLUMNS | {"words": TOKENS},
    ),
    "own": (Encoded, {"tokens": TOKENS}),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Tensor]]:
    make, inputs = MODELS[request.param]
    torch.manual_seed(0)
    return make(), inputs


def trained(net: nn.Module, inputs: dict[str, Tensor], steps: int = 3) -> nn.Module:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(**inputs), torch.arange(6) % 3).backward()
        optimizer.step()
    return net.eval()


def outputs(net: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return net.eval()(**inputs)


def merged_by_peft(net: nn.Module) -> nn.Module:
    for name, layer in list(net.named_modules()):
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, layer.base_layer)
    return net


def test_an_adapter_changes_no_output_and_then_learns(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    net, inputs = case
    before, base = outputs(net, inputs), {n: v.clone() for n, v in net.state_dict().items()}
    adapt(net, LoRA(rank=2))
    torch.testing.assert_close(outputs(net, inputs), before)
    trained(net, inputs)
    assert (outputs(net, inputs) - before).abs().max() > 1e-2
    frozen = {name: p for name, p in net.named_parameters() if not p.requires_grad}
    assert all(p.equal(base[plain_name(name)]) for name, p in frozen.items())
    assert not any("lora" in n or n.startswith("head.") for n in frozen)


def test_eval_mode_hears_the_adapter(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    """torch's own transformer layer would pass it by on its fast path."""
    net, inputs = case
    trained(adapt(net, LoRA(rank=2, train_head=False)), inputs)
    heard = outputs(net, inputs)
    torch.testing.assert_close(net.train()(**inputs).detach(), heard)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    assert (outputs(net, inputs) - heard).abs().max() > 1e-3


def test_merged_and_folded_answer_as_adapted(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    net, inputs = case
    names = list(net.state_dict())
    settings = LoRA(rank=2, alpha=3.0)
    trained(adapt(net, settings), inputs)
    said, weights = outputs(net, inputs), {n: v.clone() for n, v in net.state_dict().items()}
    merged = merged_by_peft(net)
    assert list(merged.state_dict()) == names
    assert (outputs(merged, inputs) - said).abs().max() < 1e-5
    for name, value in folded(weights, settings.alpha).items():
        torch.testing.assert_close(value, merged.state_dict()[name])


def test_what_is_stored_beside_the_base_is_small_and_enough(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    net, inputs = case
    base = {n: v.clone() for n, v in net.state_dict().items()}
    trained(adapt(net, LoRA(rank=1)), inputs)
    weights = net.state_dict()
    small = split(weights, base)
    assert small.keys() == {n for n, p in net.named_parameters() if p.requires_grad}
    again = joined(base, small)
    assert again.keys() == weights.keys()
    assert all(again[n].equal(v) for n, v in weights.items())


def test_a_linear_layer_by_hand() -> None:
    """W = 2, A = 3, B = 5, alpha / rank = 2: 2 + 2 * 15 = 32."""
    net = adapt(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1)), LoRA(rank=1, alpha=2.0))
    layer = net[0]
    for parameter, value in zip(layer.parameters(), (2.0, 3.0, 5.0), strict=True):
        nn.init.constant_(parameter, value)
    assert layer(torch.ones(1, 1)).item() == 32.0
    assert folded(net.state_dict(), 2.0)["0.weight"].item() == 32.0
    assert [n for n, _ in layer.named_parameters()] == [
        "base_layer.weight",
        "lora_A.default.weight",
        "lora_B.default.weight",
    ]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention under vmap, adapted or not
def test_gradients_of_each_row_are_those_of_that_row_alone(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    net, inputs = case
    trained(adapt(net, LoRA(rank=2)), inputs)
    parameters = {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in net.named_parameters() if not p.requires_grad} | dict(net.named_buffers())

    def loss(params: dict[str, Tensor], row: dict[str, Tensor], target: Tensor) -> Tensor:
        found = functional_call(net, {**params, **fixed}, kwargs={n: v.unsqueeze(0) for n, v in row.items()})
        return nn.functional.cross_entropy(found, target.unsqueeze(0))

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, torch.arange(6) % 3)
    for row in (0, 5):
        net.zero_grad()
        one = {n: v[row : row + 1] for n, v in inputs.items()}
        nn.functional.cross_entropy(net(**one), torch.tensor([row % 3])).backward()
        for name in parameters:
            torch.testing.assert_close(each[name][row], net.get_parameter(name).grad, msg=name)


def test_new_classes_and_categories_grow_beside_the_adapter() -> None:
    torch.manual_seed(0)
    old = trained(adapt(TabularNet(spec(), hidden=(8,), embedding_dim=2), LoRA(rank=2)), COLUMNS)
    new = adapt(TabularNet(spec(shops=7, classes=4), hidden=(8,), embedding_dim=2), LoRA(rank=2))
    grow_into(new, old.state_dict())
    torch.testing.assert_close(outputs(new, COLUMNS)[:, :3], outputs(old, COLUMNS))
    assert new.head.out_features == 4
    base = TabularNet(spec(), hidden=(8,), embedding_dim=2).state_dict()
    assert "embeddings.0.weight" in split(new.state_dict(), base)


def test_every_trained_parameter_gets_a_gradient_under_ddp(
    case: tuple[nn.Module, dict[str, Tensor]], tmp_path: Path
) -> None:
    net, inputs = case
    adapt(net, LoRA(rank=2))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        trained(DistributedDataParallel(net), inputs, steps=2)
    finally:
        dist.destroy_process_group()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_what_trains_is_what_the_settings_say() -> None:
    def trains(settings: LoRA) -> set[str]:
        net = adapt(TabularNet(spec(), hidden=(8, 6), embedding_dim=2), settings)
        return {n for n, p in net.named_parameters() if p.requires_grad}

    head = {"head.weight", "head.bias"}
    first = {"body.0.lora_A.default.weight", "body.0.lora_B.default.weight"}
    second = {"body.2.lora_A.default.weight", "body.2.lora_B.default.weight"}
    assert trains(LoRA()) == head | first | second
    assert trains(LoRA(train_head=False)) == first | second
    assert trains(LoRA(targets=("body.0",))) == head | first
    assert trains(LoRA(targets=("body.2", "head"))) == second | {
        "head.lora_A.default.weight",
        "head.lora_B.default.weight",
    }
    assert trains(LoRA(targets=("body.0",), also=("embeddings",))) == head | first | {"embeddings.0.weight"}
    alike = adapt(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), LoRA())
    assert "1.0.weight" in dict(alike.named_parameters()), "the head, whose name ends as that of the first layer"
    assert LoRA().adapts(stateful=True)
    assert not LoRA().adapts(stateful=False)
    assert LoRA(freeze="always").adapts(stateful=False)


def test_convolutions_can_be_adapted_and_folded() -> None:
    torch.manual_seed(0)
    net = SmallCNN(spec(tensors=(TensorInput(name="image", shape=(1, 8, 8)),)), channels=(3, 4))
    inputs = COLUMNS | {"image": torch.randn(6, 1, 8, 8)}
    with pytest.raises(ConfigError, match="no linear layer but its head"):
        adapt(net, LoRA())
    trained(adapt(net, LoRA(rank=2, targets=("stacks.0.1", "stacks.0.4"))), inputs)
    plain = SmallCNN(spec(tensors=(TensorInput(name="image", shape=(1, 8, 8)),)), channels=(3, 4))
    plain.load_state_dict(folded(net.state_dict(), LoRA().alpha))
    assert (outputs(plain, inputs) - outputs(net, inputs)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"adapter\.rank must be 1 or more, not 0"),
        ({"alpha": 0.0}, r"adapter\.alpha must be above 0"),
        ({"dropout": 1.0}, r"adapter\.dropout must be between 0 and 1"),
        ({"targets": ()}, r"adapter\.targets must name layers"),
        ({"freeze": "never"}, r"adapter\.freeze must be updates or always"),
        ({"targets": ("embedding",)}, r"adapter\.targets has embedding, which is Embedding embedding"),
        ({"targets": ("nowhere",)}, r"adapter\.targets has nowhere, which is no module of the model"),
        ({"targets": ("out_proj",)}, r"adapter\.targets has out_proj.*inside nn\.MultiheadAttention"),
        ({"also": ("nowhere",)}, r"adapter\.also has nowhere"),
    ],
)
def test_mistakes_name_their_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(Encoded(), LoRA(**settings))


def test_without_peft_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'cltrain\[adapters\]'"):
        adapt(Encoded(), LoRA())
