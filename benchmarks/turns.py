"""Time several ways of doing the same work in one run, on a machine that does other things as well."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def seconds(work: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """What one call takes: on a GPU wall time until the device has done it; on a CPU the time of all threads of this
    process, which loses less to whatever else runs there, and in loops that never wait is the same."""
    if torch.device(device).type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def take_turns(
    contenders: Mapping[str, Callable[[], float]], turns: int, seconds_at_most: float = math.inf, at_least: int = 5
) -> dict[str, list[float]]:
    """The seconds that each contender says it took, turn by turn, after one turn that does not count. Every other turn
    goes the other way round, so that nobody always comes after the same one. `at_least` so many turns are taken, and
    none is begun when `seconds_at_most` are over."""
    order = list(contenders)
    for name in order:
        contenders[name]()
    taken: dict[str, list[float]] = {name: [] for name in order}
    started = time.perf_counter()
    for turn in range(turns):
        if turn >= at_least and time.perf_counter() - started > seconds_at_most:
            break
        for name in order:
            taken[name].append(contenders[name]())
        order.reverse()
    return taken


def ratio(base: list[float], other: list[float]) -> tuple[float, list[float]]:
    """How much faster than `base` the other is: the median of the ratios turn by turn, since what the machine does
    beside weighs on neighbours alike, while the best time of one of them may be that of a rare moment; and the middle
    80 % of these ratios, as lowest and highest."""
    each = [b / o for b, o in zip(base, other, strict=True)]
    if len(each) < 2:
        return each[0], [each[0], each[0]]
    tenths = statistics.quantiles(each, n=10, method="inclusive")
    return statistics.median(each), [tenths[0], tenths[-1]]
