"""Shadow: copies of requests, answered by another version in a process of its own, after the client has its answer.

The process has its own interpreter and memory, and answers while the processors have nothing else to do, so that a
shadow that is slow, leaks or crashes costs live answers nothing; a thread here only moves copies to it and counts what
comes back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cltrain.registry import Store
from serve.rollout.shadow_worker import read, write
from serve.rollout.zygote import Child, Zygote

log = logging.getLogger(__name__)

MAX_RETRY_S = 5.0
TOGETHER_ROWS, GATHER_S = 256, 0.1  # rows that are answered together, which costs a fraction, and how long they gather


@dataclass(frozen=True)
class Copy:
    """What the client asked and got. `live` are the answers, a row each, `log` what the prediction log said of them."""

    rows: list[dict[str, Any]]
    live: list[dict[str, Any]]
    log: Sequence[Any]
    at: float


@dataclass(frozen=True)
class Answered:
    """What the shadow said: its answers, or the error, and the seconds that it took, for this copy `alone` or for those
    with which it was answered."""

    copy: Copy
    answers: list[dict[str, Any]] | None
    seconds: float
    alone: bool
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
        device: str,
        on_answer: Callable[[Answered], None],
        on_shed: Callable[[int], None],
        on_crash: Callable[[], None],
    ) -> None:
        self.version, self.staged, self._ready = version, False, False
        self.problem: str | None = None
        self._told = {"store": store.to_json(), "model": model, "version": version, "device": device}
        self._capacity, self._max_age_s = capacity, max_age_s
        self._on_answer, self._on_shed, self._on_crash = on_answer, on_shed, on_crash
        self._waiting: deque[Copy] = deque()
        self._taken: list[Copy] = []
        self._wake, self._stopping = threading.Condition(), False
        self._zygote = Zygote("serve.rollout.shadow_worker.work")
        self._child: Child | None = None
        self._thread = threading.Thread(target=self._run, name="cltrain-shadow", daemon=True)
        self._thread.start()

    def offer(self, copy: Copy) -> None:
        """Never waits."""
        with self._wake:
            if not self.staged or self._stopping:
                return
            if not self._ready or len(self._waiting) + len(self._taken) >= self._capacity:
                self._on_shed(1)
                return
            self._waiting.append(copy)
            self._wake.notify()

    def close(self) -> None:
        """Stop at once; what waits is dropped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            self._zygote.kill()
        self._thread.join()
        self._zygote.close()

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
        with self._wake:
            if self._stopping:
                return
            self._zygote.start()
        self._child = child = self._zygote.fork()
        write(child.to, self._told | {"again": self.staged})
        hello = read(child.of)
        if hello["problem"] is not None:
            self.problem = hello["problem"]
            return
        self.staged = self._ready = True
        while self._take():
            write(child.to, [copy.rows for copy in self._taken])
            said = read(child.of)
            taken, self._taken = self._taken, []
            for copy, one in zip(taken, said, strict=True):
                self._on_answer(Answered(copy, **one))

    def _take(self) -> bool:
        """What is asked next, the oldest copies that are young enough; False at the end."""
        with self._wake:
            while not self._taken:
                self._wake.wait_for(lambda: self._stopping or bool(self._waiting))
                self._wake.wait_for(lambda: self._stopping or self._many(), timeout=GATHER_S)
                if self._stopping:
                    return False
                rows = 0
                while self._waiting and rows < TOGETHER_ROWS:
                    copy = self._waiting.popleft()
                    if time.monotonic() - copy.at > self._max_age_s:
                        self._on_shed(1)
                        continue
                    self._taken.append(copy)
                    rows += len(copy.rows)
        return True

    def _many(self) -> bool:
        return sum(len(copy.rows) for copy in self._waiting) >= min(TOGETHER_ROWS, self._capacity)

    def _end(self) -> None:
        child, self._child, self._ready = self._child, None, False
        with self._wake:
            dropped, self._waiting, self._taken = len(self._waiting) + len(self._taken), deque(), []
        if dropped and not self._stopping:
            self._on_shed(dropped)
        if child is not None:
            child.close()
