"""The process of a shadow: one version, which answers copies of rows that come through a pipe."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any

import torch

from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, Store
from cltrain.train.predictor import Predictor
from serve.resident import load


def work(source: IO[bytes], sink: IO[bytes]) -> None:
    """`answer_copies`, where a processor would else be idle."""
    torch.set_num_threads(1)
    answer_copies(source, sink, give_way)


def give_way() -> None:
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def answer_copies(source: IO[bytes], sink: IO[bytes], yields: Callable[[], None] = lambda: None) -> None:
    """Load the version that the first message names, say whether that went well, and answer rows until the other side
    is gone. From when it has loaded for the first time on it `yields`, so that it gets there on a machine that is never
    idle too."""
    told = read(source)
    if told["again"]:
        yields()
    try:
        registry = Registry(Store(**told["store"]), told["model"])
        record, device = registry.version(told["version"]), torch.device(told["device"])
        predictor = load(registry.store.storage, record, device=device).predictor
    except Exception as error:
        write(sink, {"problem": f"{type(error).__name__}: {error}"})
        return
    yields()
    write(sink, {"problem": None})
    while True:
        try:
            asked = read(source)
        except EOFError:
            return
        write(sink, answer(predictor, [[_row(row) for row in rows] for rows in asked]))


def answer(predictor: Predictor, asked: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Answers to requests: the first alone, as live ones are, so that its seconds compare with theirs, the others
    together. Where that fails each is alone, so that it is known which one it is."""
    first, *others = asked
    said = [_alone(predictor, first)]
    if others:
        watch = Watch()
        try:
            answers = iter(predictor.answer([row for rows in others for row in rows]))
        except Exception:
            return said + [_alone(predictor, rows) for rows in others]
        seconds = watch.seconds()
        found = [[next(answers) for _ in rows] for rows in others]
        said += [{"answers": one, "seconds": seconds, "alone": False, "error": None} for one in found]
    return said


def _alone(predictor: Predictor, rows: list[dict[str, Any]]) -> dict[str, Any]:
    answers, problem, watch = None, None, Watch()
    try:
        answers = predictor.answer(rows)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return {"answers": answers, "seconds": watch.seconds(), "alone": True, "error": problem}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {EVENT_TIME: datetime.fromisoformat(row[EVENT_TIME])}


class Watch:
    """Seconds since it was made, less those for which this thread waited for a processor, where Linux says so: that the
    machine has other things to do is not the version's fault."""

    def __init__(self) -> None:
        self._waited, self._started = _waited_s(), time.perf_counter()

    def seconds(self) -> float:
        passed = time.perf_counter() - self._started
        return max(passed - (_waited_s() - self._waited), 1e-6)


def _waited_s() -> float:
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def write(stream: IO[bytes], value: Any) -> None:
    """A line of JSON, with NaN and infinities as Python writes them, and instants as ISO 8601."""
    stream.write(json.dumps(value, default=datetime.isoformat).encode() + b"\n")
    stream.flush()


def read(stream: IO[bytes]) -> Any:
    """Raises `EOFError` where the other side is gone, and `ValueError` where it ended in the middle of a line."""
    line = stream.readline()
    if not line:
        raise EOFError
    return json.loads(line)
