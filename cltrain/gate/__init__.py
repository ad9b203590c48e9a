"""Gates: a card in, a verdict with its reasons out. Pure functions."""

from cltrain.gate.absolute import Calibrated, Latency, Passed, Rows, Size, Within
from cltrain.gate.compare import Better, Flips, Forgetting, NotWorse, Unharmed
from cltrain.gate.evidence import Outcome, Rule
from cltrain.gate.non_inferiority import NonInferiority
from cltrain.gate.rules import AllOf, AnyOf, AtLeast, Rules, choose

__all__ = [
    "AllOf",
    "AnyOf",
    "AtLeast",
    "Better",
    "Calibrated",
    "Flips",
    "Forgetting",
    "Latency",
    "NonInferiority",
    "NotWorse",
    "Outcome",
    "Passed",
    "Rows",
    "Rule",
    "Rules",
    "Size",
    "Unharmed",
    "Within",
    "choose",
]
