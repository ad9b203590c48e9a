"""The default model: a network for tables, built from the encoder of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cltrain.batch import UNKNOWN, InputSpec
from cltrain.errors import ConfigError

NEW_CLASSES_SHARE = 0.05  # of the probability, at most, that all new classes together start with


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding of standardised numbers (Gorishniy et al. 2022, eq. 1, clipped at both ends).

    Takes (B, F) and gives (B, K), one value in [0, 1] for each of the K bins of all columns.
    """

    left: Tensor
    width: Tensor
    column: Tensor

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        left = [a for column in edges for a in column[:-1]]
        width = [b - a for column in edges for a, b in pairwise(column)]
        index = [i for i, column in enumerate(edges) for _ in column[:-1]]
        self.register_buffer("left", torch.tensor(left, dtype=torch.float32))
        self.register_buffer("width", torch.tensor(width, dtype=torch.float32))
        self.register_buffer("column", torch.tensor(index, dtype=torch.int64))

    @property
    def num_features(self) -> int:
        return self.left.shape[0]

    def forward(self, numeric: Tensor) -> Tensor:
        return ((numeric.index_select(1, self.column) - self.left) / self.width).clamp(0.0, 1.0)


class TabularNet(nn.Module):
    """Embeddings of categories beside numbers, as they are and piecewise-linear, into a perceptron.

    Args:
        spec: numbers of columns, their quantiles, the cardinalities and the number of outputs.
        hidden: width of each hidden layer.
        embedding_dim: dimensions of each category's embedding.
        dropout: share of hidden units dropped in training.
    """

    def __init__(
        self, spec: InputSpec, hidden: Sequence[int] = (64, 32), embedding_dim: int = 6, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if embedding_dim < 1 or any(units < 1 for units in hidden) or not 0 <= dropout < 1:
            raise ConfigError(
                "model.embedding_dim and each of model.hidden must be 1 or more, and model.dropout between 0 and 1, "
                f"not {embedding_dim}, {list(hidden)} and {dropout}"
            )
        tables = [nn.Embedding(size, embedding_dim) for size in spec.cardinalities]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self.embeddings = nn.ModuleList(tables)
        self.num_columns = spec.num_columns
        self.piecewise = PiecewiseLinear(spec.edges)
        width = spec.num_numeric + self.piecewise.num_features + embedding_dim * len(spec.cardinalities)
        self.has_inputs = width > 0  # where no column ever varied, a constant stands in for them
        width = max(width, 1)
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            width = units
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, spec.num_outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """(B, F) float32 and (B, C) int64 to (B, outputs) logits or standardised values."""
        parts = [numeric, self.piecewise(numeric[:, : self.num_columns])]
        parts += [table(categorical[:, i]) for i, table in enumerate(self.embeddings)]
        inputs = torch.cat(parts, dim=1) if self.has_inputs else numeric.new_ones(numeric.shape[0], 1)
        return self.head(self.body(inputs))

    def start_at(self, task: str, target: Tensor) -> None:
        """Before a training from scratch: let the bias of the head say the base rate of `target` (N,)."""
        with torch.no_grad():
            if task == "binary":
                share = (target.sum() + 0.5) / (len(target) + 1)
                self.head.bias.fill_(torch.logit(share).item())
            elif task == "multiclass":
                outputs = self.head.out_features
                counts = torch.bincount(target[target < outputs], minlength=outputs) + 0.5
                self.head.bias.copy_(torch.log(counts / counts.sum()))
            else:
                self.head.bias.fill_(target.mean().item())

    def new_rows(self, name: str, old: Tensor, count: int) -> Tensor | None:
        """Rows for parameter `name` when it grows by `count`.

        A new category starts as the unknown one. The logit of a new class is the mean of the old ones, lowered so
        that by Jensen's inequality all new classes together get `NEW_CLASSES_SHARE` of the probability at most: the
        old classes keep their logits, and their probabilities but for that share.
        """
        if name.startswith("embeddings."):
            return old[UNKNOWN].expand(count, -1)
        mean = old.mean(dim=0, keepdim=True).expand(count, *old.shape[1:])
        if name == "head.bias":
            odds = NEW_CLASSES_SHARE / (1 - NEW_CLASSES_SHARE)
            return mean + math.log(odds * old.shape[0] / count)
        return mean if name == "head.weight" else None
