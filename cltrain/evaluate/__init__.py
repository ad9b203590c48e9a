"""Evaluation: sums of metrics, paired comparisons, the report card."""

from cltrain.evaluate.metrics import MetricSums, headline
from cltrain.evaluate.report_card import Evaluation

__all__ = ["Evaluation", "MetricSums", "headline"]
