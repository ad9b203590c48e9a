"""Evaluation: sums of metrics, paired comparisons, slices, the transfer matrix, the report card."""

from cltrain.evaluate.cache import PredictionCache
from cltrain.evaluate.metrics import MetricSums, headline
from cltrain.evaluate.report_card import Evaluation
from cltrain.evaluate.rules import Rule
from cltrain.evaluate.slices import Slice
from cltrain.evaluate.transfer import Transfer

__all__ = ["Evaluation", "MetricSums", "PredictionCache", "Rule", "Slice", "Transfer", "headline"]
