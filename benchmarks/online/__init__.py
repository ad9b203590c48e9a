"""The statistics of online tests, by simulation: false alarms, power, what variance reduction, interleaving, bandits
and off-policy estimates are worth. Every row is a count over seeded runs; `ratio` is against what the row's name says,
and `bar` is what it must be.

With `--peers PYTHON`, of an environment with `peers/requirements.txt`, bandits of Vowpal Wabbit and bayesianbandits
play the same replays. Five to ten minutes on one core.
"""

from __future__ import annotations

import argparse

from benchmarks.online.bandits import against_peers, bandits
from benchmarks.online.common import Row
from benchmarks.online.experiments import cuped, false_alarms, guardrails, layers, power, sample_ratio
from benchmarks.online.interleaving import interleaving
from benchmarks.online.policies import off_policy_coverage, thresholds

PARTS = {
    "false_alarms": false_alarms,
    "power": power,
    "guardrails": guardrails,
    "sample_ratio": sample_ratio,
    "cuped": cuped,
    "interleaving": interleaving,
    "bandits": bandits,
    "off_policy": off_policy_coverage,
    "layers": layers,
    "thresholds": thresholds,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=2_000, help="simulated tests a row")
    parser.add_argument("--only", choices=sorted([*PARTS, "peers"]), help="one part")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has vowpalwabbit or bayesianbandits, or both")


def run(options: argparse.Namespace) -> list[Row]:
    parts = [options.only] if options.only else list(PARTS)
    rows = [row for name in parts if name != "peers" for row in PARTS[name](options.runs)]
    if options.peers and options.only in (None, "peers"):
        rows += against_peers(options.peers)
    elif options.only in (None, "peers"):
        print("bandits of other libraries are left out: --peers PYTHON of an environment that has them")
    return rows
