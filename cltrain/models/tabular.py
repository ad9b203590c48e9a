"""The default model: a network for tables, built from the encoder of the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cltrain.batch import InputSpec
from cltrain.errors import ConfigError
from cltrain.models.head import HeadedNet


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


class ColumnsNet(HeadedNet):
    """Base of our models: one table of embeddings for each categorical column, and numbers as they are beside their
    piecewise-linear encoding."""

    def __init__(self, spec: InputSpec, embedding_dim: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ConfigError(f"model.embedding_dim must be 1 or more, not {embedding_dim}")
        tables = [nn.Embedding(size, embedding_dim) for size in spec.cardinalities]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self.embeddings = nn.ModuleList(tables)
        self.num_columns = spec.num_columns
        self.piecewise = PiecewiseLinear(spec.edges)
        self.width = spec.num_numeric + self.piecewise.num_features + embedding_dim * len(spec.cardinalities)

    def columns(self, numeric: Tensor, categorical: Tensor) -> list[Tensor]:
        """Parts of (B, width), to be joined; none where no column ever varied."""
        if not self.width:
            return []
        parts = [numeric, self.piecewise(numeric[:, : self.num_columns])]
        return parts + [table(categorical[:, i]) for i, table in enumerate(self.embeddings)]


class TabularNet(ColumnsNet):
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
        super().__init__(spec, embedding_dim)
        if any(units < 1 for units in hidden) or not 0 <= dropout < 1:
            raise ConfigError(
                "each of model.hidden must be 1 or more, and model.dropout between 0 and 1, "
                f"not {list(hidden)} and {dropout}"
            )
        width = max(self.width, 1)
        layers: list[nn.Module] = []
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            width = units
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, spec.num_outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """(B, F) float32 and (B, C) int64 to (B, outputs) logits or standardised values."""
        parts = self.columns(numeric, categorical) or [numeric.new_ones(numeric.shape[0], 1)]
        return self.head(self.body(torch.cat(parts, dim=1)))
