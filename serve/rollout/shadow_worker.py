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
        predictor = load(registry.store.storage, registry.version(told["version"])).predictor
    except Exception as error:
        write(sink, {"problem": f"{type(error).__name__}: {error}"})
        return
    yields()
    write(sink, {"problem": None})
    while True:
        try:
            rows = [row | {EVENT_TIME: datetime.fromisoformat(row[EVENT_TIME])} for row in read(source)]
        except EOFError:
            return
        started = time.perf_counter()
        answers, problem = None, None
        try:
            answers = predictor.answer(rows)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        write(sink, {"answers": answers, "seconds": time.perf_counter() - started, "error": problem})


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
