"""A small convolutional network for columns of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cltrain.batch import InputSpec
from cltrain.errors import ConfigError
from cltrain.models.tabular import ColumnsNet


class SmallCNN(ColumnsNet):
    """Twice convolution 3 × 3, ReLU and max-pooling 2 × 2 for each column of tensors; and one linear layer for what
    comes of that, joined by the other columns. Nothing is normalised over a batch, so that a row's output, and its
    gradient, are its own.

    Args:
        spec: with one or more tensors.
        shape: (C, H, W) of the tensors that hold as many numbers; see `image_shape` for those without.
        channels: of the first and the second convolution.
        embedding_dim: dimensions of each category's embedding.
    """

    def __init__(
        self,
        spec: InputSpec,
        shape: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32),
        embedding_dim: int = 6,
    ) -> None:
        super().__init__(spec, embedding_dim)
        self.check(spec)
        if len(channels) != 2 or min(channels) < 1 or (shape is not None and (len(shape) != 3 or min(shape) < 1)):
            raise ConfigError(
                "model.channels must be two numbers of 1 or more, and model.shape [channels, height, width] or null, "
                f"not {list(channels)} and {shape if shape is None else list(shape)}"
            )
        if shape is not None and all(math.prod(t.shape) != math.prod(shape) for t in spec.tensors):
            sizes = ", ".join(f"{t.name} {list(t.shape)}" for t in spec.tensors)
            raise ConfigError(f"model.shape={list(shape)} holds {math.prod(shape)} numbers, but the data has: {sizes}")
        if spec.texts:
            raise ConfigError(
                f"model=cnn cannot take the text in {', '.join(t.name for t in spec.texts)}: leave it out of data.text "
                "or write a model for both"
            )
        self.names = [t.name for t in spec.tensors]
        images = [image_shape(t.shape, shape) for t in spec.tensors]
        self.stacks = nn.ModuleList(nn.Flatten() if i is None else _stack(i, channels) for i in images)
        width = self.width
        for tensor, image in zip(spec.tensors, images, strict=True):
            width += math.prod(tensor.shape) if image is None else channels[1] * _quarter(image[1]) * _quarter(image[2])
        self.head = nn.Linear(width, spec.num_outputs)

    @staticmethod
    def check(spec: InputSpec) -> None:
        """Raises `ConfigError` for data that is not for this model."""
        if not spec.tensors:
            raise ConfigError(
                "model=cnn needs a column of tensors (lists of numbers that all have one length), and there is none: "
                "use model=tabular"
            )
        if spec.texts:
            raise ConfigError(
                f"model=cnn cannot take the text in {', '.join(t.name for t in spec.texts)}: leave it out of data.text "
                "or write a model for both"
            )

    def forward(self, numeric: Tensor, categorical: Tensor, **tensors: Tensor) -> Tensor:
        """(B, F) float32, (B, C) int64 and each tensor (B, *shape) float32 to (B, outputs) logits or standardised
        values."""
        parts = [stack(tensors[name]) for name, stack in zip(self.names, self.stacks, strict=True)]
        return self.head(torch.cat(parts + self.columns(numeric, categorical), dim=1))


class AsImage(nn.Module):
    """(B, ...) to (B, C, H, W); with `channels_last` from (B, H, W, C)."""

    def __init__(self, image: tuple[int, int, int], channels_last: bool) -> None:
        super().__init__()
        self.image, self.channels_last = image, channels_last

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(-1, 1) if self.channels_last else tensor.reshape(-1, *self.image)


def image_shape(shape: Sequence[int], given: Sequence[int] | None = None) -> tuple[int, int, int, bool] | None:
    """(C, H, W) of a tensor, and whether its channels are last: `given` where that holds as many numbers; else (H, W)
    is one channel, 1, 3 or 4 numbers at the end of a larger (H, W) are channels, and a vector of a square number is a
    square. None for what is no image: it joins the other columns as it is.

    >>> image_shape((784,)), image_shape((32, 32, 3)), image_shape((3, 8, 8)), image_shape((300,))
    ((1, 28, 28, False), (3, 32, 32, True), (3, 8, 8, False), None)
    """
    if given is not None and math.prod(given) == math.prod(shape):
        channels, height, width = given
        return channels, height, width, False
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        return (1, side, side, False) if side * side == shape[0] and side > 1 else None
    if len(shape) == 2:
        return 1, shape[0], shape[1], False
    if len(shape) == 3:
        a, b, c = shape
        return (c, a, b, True) if c in (1, 3, 4) and min(a, b) > c else (a, b, c, False)
    return None


def _stack(image: tuple[int, int, int, bool], channels: Sequence[int]) -> nn.Sequential:
    first, second = channels
    return nn.Sequential(
        AsImage(image[:3], image[3]),
        nn.Conv2d(image[0], first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
    )


def _quarter(side: int) -> int:
    return -(-side // 4)
