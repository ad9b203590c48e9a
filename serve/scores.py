"""One number for an answer, the bin that it falls into, and whether two answers say the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from cltrain.train.predictor import Predictor
from serve.rollout.evidence import SCORE_BINS

TOLERANCE = 0.05  # of a standard deviation of the label: values this near say the same


def chosen(answer: Mapping[str, Any]) -> tuple[float, str | None]:
    """One number and one label for an answer: probability of the positive class and 0 or 1; probability of the class
    answered and that class; or the value and no label."""
    if "probabilities" in answer:
        return answer["probabilities"][answer["label"]], answer["label"]
    if "probability" in answer:
        return answer["probability"], str(answer["label"])
    return answer["value"], None


def binning(predictor: Predictor) -> Callable[[float, str | None], int]:
    """Into which of `SCORE_BINS` bins a chosen number and label fall: by probability (binary), by class (multiclass; of
    more classes than bins, several share one), or by distance from the mean label, up to four standard deviations."""
    encoder = predictor.state.encoder
    if predictor.task == "multiclass":
        places = {label: index % SCORE_BINS for index, label in enumerate(encoder.classes)}
        return lambda _, label: places.get(label or "", SCORE_BINS - 1)
    if predictor.task == "binary":
        return lambda score, _: min(int(score * SCORE_BINS), SCORE_BINS - 1)
    low, width = encoder.target_mean - 4 * encoder.target_std, 8 * encoder.target_std / SCORE_BINS or 1.0
    return lambda score, _: min(max(int((score - low) / width), 0), SCORE_BINS - 1)


def agree(ours: tuple[float, str | None], theirs: tuple[float, str | None], target_std: float) -> bool:
    """The same label, or values that differ by less than `TOLERANCE` standard deviations of the label."""
    if ours[1] is not None:
        return ours[1] == theirs[1]
    return abs(ours[0] - theirs[0]) <= TOLERANCE * target_std


def is_finite(answers: list[dict[str, Any]]) -> bool:
    return all(math.isfinite(chosen(answer)[0]) for answer in answers)
