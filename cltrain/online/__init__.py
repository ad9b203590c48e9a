"""What live traffic decides: assignment, sequential tests, interleaving, bandits, the policy layer.

Pure functions and plain states: nothing here knows of Ray, of HTTP or of a clock.
"""

from cltrain.online.ab import Conclusion, Tally, conclude
from cltrain.online.assignment import arm_of, bucket, check_shares, is_held_out
from cltrain.online.bandits import UCB, EpsilonGreedy, LinearThompson, LinUCB, Policy, Thompson
from cltrain.online.design import Experiment, Metric, units_needed
from cltrain.online.interleave import Wins, credit, team_draft
from cltrain.online.learning import Bandit, Choice, Outcome, Snapshot
from cltrain.online.policy import Document, Layer, Limits, Threshold, ThresholdLearner, Weights, WeightsLearner
from cltrain.online.recommend import Recommendation, Situation, recommend
from cltrain.online.sequential import Interval, rate_bound, rate_excess

__all__ = [
    "UCB",
    "Bandit",
    "Choice",
    "Conclusion",
    "Document",
    "EpsilonGreedy",
    "Experiment",
    "Interval",
    "Layer",
    "Limits",
    "LinUCB",
    "LinearThompson",
    "Metric",
    "Outcome",
    "Policy",
    "Recommendation",
    "Situation",
    "Snapshot",
    "Tally",
    "Thompson",
    "Threshold",
    "ThresholdLearner",
    "Weights",
    "WeightsLearner",
    "Wins",
    "arm_of",
    "bucket",
    "check_shares",
    "conclude",
    "credit",
    "is_held_out",
    "rate_bound",
    "rate_excess",
    "recommend",
    "team_draft",
    "units_needed",
]
