"""Which hidden layer of a perceptron continues which one of its parent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import nn

from cltrain.errors import UpdateError


def aligned_layers(parent: nn.Module, net: nn.Module) -> tuple[dict[str, str | None], dict[str, int]]:
    """For each linear layer of the perceptrons that both have, the one of the parent that it continues, or None; and
    those that are to be identities, with the width that they pass on."""
    layers: dict[str, str | None] = {}
    identity: dict[str, int] = {}
    theirs = _perceptrons(parent)
    for name, (hidden, last) in _perceptrons(net).items():
        if name not in theirs or (last is None) != (theirs[name][1] is None):
            continue
        before, before_last = theirs[name]
        widths, now = list(before.values()), list(hidden.values())
        chosen = align(widths, now)
        if chosen is None:
            raise UpdateError(
                f"{name or 'the model'} had hidden layers of {widths} units and is to have {now}: surgery widens "
                "layers and adds some behind the first, and removes neither; train from scratch"
            )
        source = dict(zip(chosen, before.items(), strict=True))
        passed = 0
        for i, layer in enumerate(hidden):
            if i in source:
                layers[layer], passed = source[i]
            else:
                layers[layer], identity[layer] = None, passed
        if last is not None:
            layers[last] = before_last
    return layers, identity


def align(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Which of the layers of `new` units continue those of `old` units: the first does, each is at least as wide, and
    those in between can pass on what they get; of such choices the one with the fewest new units. None: there is none.

    >>> align([64, 32], [64, 64, 32])
    (0, 2)
    >>> align([64, 32], [128, 32, 32])
    (0, 1)
    >>> align([64, 32], [64]) is None
    True
    """

    def fits(places: tuple[int, ...]) -> bool:
        ends = (*places[1:], len(new))
        return places[0] == 0 and all(min(new[a:b]) >= width for a, b, width in zip(places, ends, old, strict=True))

    if not old:
        return None if new else ()
    options = [places for places in combinations(range(len(new)), len(old)) if fits(places)]
    return min(options, key=lambda places: sum(new[i] for i in places), default=None)


def _perceptrons(net: nn.Module) -> dict[str, tuple[dict[str, int], str | None]]:
    """By the name of every `nn.Sequential` that is linear layers with ReLU in between, and dropout maybe: the units of
    its hidden layers by name, and the name of a last layer without ReLU."""
    found: dict[str, tuple[dict[str, int], str | None]] = {}
    for name, module in net.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        steps = [(f"{name}.{n}".lstrip("."), m) for n, m in module.named_children() if not isinstance(m, nn.Dropout)]
        hidden = {n: m.out_features for n, m in steps[::2] if isinstance(m, nn.Linear)}
        last = next(reversed(hidden)) if hidden and len(steps) % 2 else None
        if len(hidden) == len(steps[::2]) and all(isinstance(m, nn.ReLU) for _, m in steps[1::2]) and hidden:
            found[name] = ({n: width for n, width in hidden.items() if n != last}, last)
    return found
