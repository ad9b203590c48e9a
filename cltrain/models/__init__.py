"""Models: what takes `Batch.inputs` and gives outputs. Any `torch.nn.Module` will do."""

from cltrain.models.tabular import TabularNet
from cltrain.models.text import TextTransformer
from cltrain.models.vision import SmallCNN

__all__ = ["SmallCNN", "TabularNet", "TextTransformer"]
