"""A small transformer encoder for columns of text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from cltrain.batch import InputSpec
from cltrain.errors import ConfigError
from cltrain.models.tabular import ColumnsNet

PADDING = 0


class EncoderLayer(nn.Module):
    """Attention and a perceptron, each on normalised inputs and added to them (pre-norm: Xiong et al. 2020)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """(B, L, D) to the same, where `visible` (B, 1, 1, L) bool says which places may be attended to."""
        rows, length, dim = x.shape
        qkv = self.qkv(self.attention_norm(x)).reshape(rows, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(rows, length, dim)))
        return x + self.dropout(self.down(gelu(self.up(self.perceptron_norm(x)))))


class TextTransformer(ColumnsNet):
    """Token and position embeddings, encoder layers, and the mean over the tokens of each column of text; and one
    linear layer for what comes of that, joined by the other columns. Tokens of several columns see each other.

    Args:
        spec: with one or more texts.
        dim: of a token.
        heads: of the attention; divides `dim`.
        layers: encoder layers.
        dropout: share of what each half of a layer adds that is dropped in training.
        embedding_dim: dimensions of each category's embedding.
    """

    def __init__(
        self,
        spec: InputSpec,
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
        embedding_dim: int = 6,
    ) -> None:
        super().__init__(spec, embedding_dim)
        self.check(spec)
        if min(dim, heads) < 1 or layers < 0 or dim % heads or not 0 <= dropout < 1:
            raise ConfigError(
                "model.dim must be a multiple of model.heads, both 1 or more, model.layers 0 or more, and "
                f"model.dropout between 0 and 1, not {dim}, {heads}, {layers} and {dropout}"
            )
        self.texts = [(t.name, t.max_tokens) for t in spec.texts]
        tables = [nn.Embedding(t.vocabulary, dim) for t in spec.texts]
        self.tokens = nn.ModuleList(tables)
        self.positions = nn.Parameter(torch.empty(sum(t.max_tokens for t in spec.texts), dim))
        for weight in (*(table.weight for table in tables), self.positions):
            nn.init.normal_(weight, std=0.02)
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim * len(self.texts) + self.width, spec.num_outputs)

    @staticmethod
    def check(spec: InputSpec) -> None:
        """Raises `ConfigError` for data that is not for this model."""
        if not spec.texts:
            raise ConfigError("model=text needs a column of text, and there is none: name it, data.text='[COLUMN]'")
        if spec.tensors:
            names = ",".join(t.name for t in spec.tensors)
            raise ConfigError(
                f"model=text cannot take the tensors in {names}: leave them out with data.exclude='[{names}]' or write "
                "a model for both"
            )

    def forward(self, numeric: Tensor, categorical: Tensor, **texts: Tensor) -> Tensor:
        """(B, F) float32, (B, C) int64 and each text (B, L) int64 to (B, outputs) logits or standardised values."""
        tokens = [texts[name] for name, _ in self.texts]
        real = torch.cat(tokens, dim=1) != PADDING
        x = torch.cat([table(t) for table, t in zip(self.tokens, tokens, strict=True)], dim=1) + self.positions
        # A row without any token sees its first place, since a softmax over nothing is not a number.
        first = torch.arange(real.shape[1], device=real.device) == 0
        visible = (real | (first & ~real.any(dim=1, keepdim=True)))[:, None, None, :]
        for layer in self.layers:
            x = layer(x, visible)
        kept = (self.norm(x) * real.unsqueeze(2)).split([length for _, length in self.texts], dim=1)
        counts = real.split([length for _, length in self.texts], dim=1)
        means = [k.sum(dim=1) / c.sum(dim=1, keepdim=True).clamp(min=1) for k, c in zip(kept, counts, strict=True)]
        return self.head(torch.cat(means + self.columns(numeric, categorical), dim=1))
