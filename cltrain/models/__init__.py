"""Models: what takes `Batch.inputs` and gives outputs. Any `torch.nn.Module` will do."""

from cltrain.models.tabular import TabularNet

__all__ = ["TabularNet"]
