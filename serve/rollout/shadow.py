"""Shadow: copies of requests, answered by another version in a process of its own, after the client has its answer.

The process has its own interpreter and memory, and answers while the processors have nothing else to do, so that a
shadow that is slow, leaks or crashes costs live answers nothing; a thread here only moves copies to it and counts what
comes back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, Store

log = logging.getLogger(__name__)

MAX_RETRY_S = 5.0
NICE = "import os; os.nice(10)"  # to load at first: it gets there on a machine that is never idle
IDLE = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))" if hasattr(os, "SCHED_IDLE") else NICE


@dataclass(frozen=True)
class Copy:
    """What the client asked and got. `live` are the answers, a row each, `log` what the prediction log said of them."""

    rows: list[dict[str, Any]]
    live: list[dict[str, Any]]
    log: Sequence[Any]
    at: float


@dataclass(frozen=True)
class Answered:
    """What the shadow said: its answers and the seconds that it took, or the error."""

    copy: Copy
    answers: list[dict[str, Any]] | None
    seconds: float
    error: str | None = None


class ShadowProcess:
    """One version in a process of its own. At most `capacity` copies wait, and none longer than `max_age_s`; others are
    shed and counted by `on_shed`. A process that ends is started again, ever more slowly, and `on_crash` counts it.

    `staged` is True once the version was loaded and verified; `problem` says why it cannot be.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        version: str,
        *,
        capacity: int,
        max_age_s: float,
        on_answer: Callable[[Answered], None],
        on_shed: Callable[[int], None],
        on_crash: Callable[[], None],
    ) -> None:
        self.version, self.staged, self._ready = version, False, False
        self.problem: str | None = None
        self._told = {"store": store.to_json(), "model": model, "version": version}
        self._capacity, self._max_age_s = capacity, max_age_s
        self._on_answer, self._on_shed, self._on_crash = on_answer, on_shed, on_crash
        self._waiting: deque[Copy] = deque()
        self._wake, self._stopping = threading.Condition(), False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="cltrain-shadow", daemon=True)
        self._thread.start()

    def offer(self, copy: Copy) -> None:
        """Never waits."""
        with self._wake:
            if not self.staged or self._stopping:
                return
            if not self._ready or len(self._waiting) >= self._capacity:
                self._on_shed(1)
                return
            self._waiting.append(copy)
            self._wake.notify()

    def close(self) -> None:
        """Stop at once; what waits is dropped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            if self._process is not None:
                with contextlib.suppress(OSError):
                    self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                self._serve()
            except (OSError, EOFError, ValueError) as error:
                if self._stopping:
                    break
                failures += 1
                log.warning("the shadow %s ended (%s) and is started again", self.version, error or "no answer")
                self._on_crash()
            finally:
                self._end()
            if self.problem is not None:
                return
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, timeout=min(0.1 * 2**failures, MAX_RETRY_S))

    def _serve(self) -> None:
        self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        _write(process.stdin, self._told)
        hello = _read(process.stdout)
        if hello["problem"] is not None:
            self.problem = hello["problem"]
            return
        self.staged = self._ready = True
        while (copy := self._next()) is not None:
            _write(process.stdin, copy.rows)
            said = _read(process.stdout)
            self._on_answer(Answered(copy, said["answers"], said["seconds"], said["error"]))

    def _next(self) -> Copy | None:
        """The oldest copy that is young enough; None at the end."""
        with self._wake:
            while True:
                self._wake.wait_for(lambda: self._stopping or bool(self._waiting))
                if self._stopping:
                    return None
                copy = self._waiting.popleft()
                if time.monotonic() - copy.at <= self._max_age_s:
                    return copy
                self._on_shed(1)

    def _start(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        with self._wake:
            if self._stopping:
                raise EOFError
            code = f"{IDLE if self.staged else NICE}; from serve.rollout.shadow import work; work()"
            command = [sys.executable, "-c", code]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, close_fds=True
            )

    def _end(self) -> None:
        process, self._process, self._ready = self._process, None, False
        with self._wake:
            dropped, self._waiting = len(self._waiting), deque()
        if dropped and not self._stopping:
            self._on_shed(dropped)
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()


def work() -> None:
    """The process: `answer_copies` between its pipes."""
    import torch

    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever prints must not mix with the answers
    torch.set_num_threads(1)
    answer_copies(source, sink, _give_way)


def _give_way() -> None:
    """Run only where this process's thread would else leave a processor idle."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def answer_copies(source: IO[bytes], sink: IO[bytes], on_loaded: Callable[[], None] = lambda: None) -> None:
    """Load the version that the first message names, say whether that went well, and answer rows until the other side
    is gone."""
    from serve.resident import load

    told = _read(source)
    try:
        registry = Registry(Store(**told["store"]), told["model"])
        predictor = load(registry.store.storage, registry.version(told["version"])).predictor
    except Exception as error:
        _write(sink, {"problem": f"{type(error).__name__}: {error}"})
        return
    on_loaded()
    _write(sink, {"problem": None})
    while True:
        try:
            rows = [row | {EVENT_TIME: datetime.fromisoformat(row[EVENT_TIME])} for row in _read(source)]
        except EOFError:
            return
        started = time.perf_counter()
        answers, problem = None, None
        try:
            answers = predictor.answer(rows)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        _write(sink, {"answers": answers, "seconds": time.perf_counter() - started, "error": problem})


def _write(stream: IO[bytes], value: Any) -> None:
    """A line of JSON, with NaN and infinities as Python writes them, and instants as ISO 8601."""
    stream.write(json.dumps(value, default=datetime.isoformat).encode() + b"\n")
    stream.flush()


def _read(stream: IO[bytes]) -> Any:
    """Raises `EOFError` where the other side is gone, and `ValueError` where it ended in the middle of a line."""
    line = stream.readline()
    if not line:
        raise EOFError
    return json.loads(line)
