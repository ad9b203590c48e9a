"""Replayed traffic: events of the past as requests, while something else happens, and their labels as feedback."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa

from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME
from cltrain.seeding import derive_seed, hash_ids
from cltrain.task import LOG_LOSS_FLOOR

FEEDBACK_ROWS = 500
LABELS_EVERY_S = 0.5
_READY_POLL_S = 0.1


@dataclass
class Sent:
    """One row that was sent, and what came of it. `answer` is None when the request failed; `done` when it is known."""

    row: Mapping[str, Any]
    seconds: float = 0.0
    version: str | None = None
    answer: Mapping[str, Any] | None = None
    error: str | None = None
    done: bool = False


def sample_rows(rows: pa.Table, size: int, seed: int) -> list[dict[str, Any]]:
    """`size` rows at most, the same for the same seed in any order of the table, sorted by event time."""
    draw = hash_ids(rows[EVENT_ID], derive_seed(seed, "traffic"))
    picked = rows.take(pa.array(np.sort(np.argsort(draw, kind="stable")[:size])))
    return picked.sort_by([(EVENT_TIME, "ascending"), (EVENT_ID, "ascending")]).to_pylist()


def other_rows(rows: pa.Table, size: int, seed: int, most: int) -> Iterator[dict[str, Any]]:
    """The rows that `sample_rows` leaves, `most` of them at most, by event time."""
    draw = hash_ids(rows[EVENT_ID], derive_seed(seed, "traffic"))
    rest = rows.take(pa.array(np.sort(np.argsort(draw, kind="stable")[size : size + most])))
    for batch in rest.sort_by([(EVENT_TIME, "ascending"), (EVENT_ID, "ascending")]).to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


def request_of(row: Mapping[str, Any]) -> dict[str, Any]:
    features = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
        if not name.startswith("_")
    }
    return {"rows": [{"event_id": row[EVENT_ID], "event_time": row[EVENT_TIME].isoformat(), "features": features}]}


def feedback_of(sent: Sequence[Sent]) -> list[dict[str, Any]]:
    """A label for each row that was answered and has one."""
    return [
        {
            "request_id": one.answer["request_id"],
            "event_id": one.row[EVENT_ID],
            "label": one.row[LABEL],
            "label_time": (one.row.get(LABEL_TIME) or one.row[EVENT_TIME]).isoformat(),
        }
        for one in sent
        if one.answer is not None and one.row.get(LABEL) is not None
    ]


def loss_of(answer: Mapping[str, Any], label: Any) -> float:
    """Log loss in nats, or the squared error of a value."""
    if "value" in answer:
        return (answer["value"] - label) ** 2
    p = answer["probabilities"].get(label, 0.0) if "probabilities" in answer else answer["probability"]
    if "probability" in answer and not label:
        p = 1.0 - p
    return -math.log(min(max(p, LOG_LOSS_FLOOR), 1.0))


def summarise(sent: Sequence[Sent], feedback: int) -> dict[str, Any]:
    """What is kept of replayed traffic: counts, the client's latencies in ms, mean loss where labels are known."""
    answered = [one for one in sent if one.answer is not None]
    milliseconds = [1e3 * one.seconds for one in answered]
    losses = [loss_of(one.answer, one.row[LABEL]) for one in answered if one.answer and one.row.get(LABEL) is not None]
    squared = any("value" in one.answer for one in answered if one.answer)
    return {
        "sent": len(sent),
        "failed": len(sent) - len(answered),
        "feedback": feedback,
        "by_version": dict(Counter(one.version.rpartition(":")[2] for one in answered if one.version)),
        "p50_ms": float(np.percentile(milliseconds, 50)) if milliseconds else None,
        "p99_ms": float(np.percentile(milliseconds, 99)) if milliseconds else None,
        "squared_error" if squared else "log_loss": float(np.mean(losses)) if losses else None,
        "error": next((one.error for one in sent if one.error), None),
    }


@dataclass
class Traffic:
    """Sends `rows` to `url` while its block runs, one request a row, and the labels of those that were answered.

    Requests are `spread_s` seconds apart from first to last, `concurrency` at a time at most; a `reserve` of them waits
    until the block is over, so that what the block has put in place answers some. Nothing is sent before the server is
    ready, and nothing at all if it never is; an error in the block ends it early. `result` is there after the block.

    Within the block of `go_on` the rows of `spare` follow, as fast as `concurrency` lets them, and labels are sent as
    answers come in: a roll-out that takes its time needs both. `exhausted` says that there are no more.
    """

    url: str
    rows: list[dict[str, Any]]
    spread_s: float
    concurrency: int
    timeout_s: float
    reserve: float = 0.1
    spare: Callable[[], Iterable[Mapping[str, Any]]] = tuple
    exhausted: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    block_s: float = 0.0

    def __enter__(self) -> Traffic:
        self._over, self._going_on = threading.Event(), threading.Event()
        self._labelled = 0
        self._rest: Iterator[Mapping[str, Any]] | None = None
        self._crash: BaseException | None = None
        self._abandoned = False
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="cltrain-traffic", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.block_s = time.perf_counter() - self._started
        self._abandoned = error is not None
        self._over.set()
        self._thread.join()
        if self._crash is not None and error is None:
            raise self._crash

    @contextmanager
    def go_on(self) -> Iterator[None]:
        """More traffic while the block runs."""
        self._going_on.set()
        try:
            yield
        finally:
            self._going_on.clear()

    def _run(self) -> None:
        try:
            self.result = asyncio.run(self._replay())
        except BaseException as error:
            self._crash = error

    async def _replay(self) -> dict[str, Any]:
        sent: list[Sent] = []
        feedback = 0
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        async with aiohttp.ClientSession(self.url, timeout=timeout) as session:
            if await self._ready(session):
                at_once = asyncio.Semaphore(self.concurrency)
                held_back = len(self.rows) - math.ceil(self.reserve * len(self.rows))
                started = time.monotonic()
                async with asyncio.TaskGroup() as group:
                    for index, row in enumerate(self.rows):
                        due = started + self.spread_s * index / len(self.rows)
                        while not self._over.is_set() and (index >= held_back or time.monotonic() < due):
                            if self._going_on.is_set() and not self.exhausted:
                                feedback += await self._go_on(session, sent, at_once, group)
                            await asyncio.sleep(min(0.01, max(0.0, due - time.monotonic())) or 0.01)
                        if self._abandoned:
                            break
                        await at_once.acquire()
                        sent.append(Sent(row))
                        group.create_task(_send(session, sent[-1], at_once))
            feedback += await _send_labels(session, feedback_of(sent[self._labelled :]))
        return summarise(sent, feedback)

    async def _go_on(
        self, session: aiohttp.ClientSession, sent: list[Sent], at_once: asyncio.Semaphore, group: asyncio.TaskGroup
    ) -> int:
        """Send spare rows, and labels of what was answered, until that is enough; how many labels were kept."""
        feedback, due = 0, time.monotonic() + LABELS_EVERY_S
        for row in self._spare():
            if not self._going_on.is_set() or self._over.is_set():
                return feedback
            await at_once.acquire()
            sent.append(Sent(row))
            group.create_task(_send(session, sent[-1], at_once))
            if time.monotonic() >= due:
                feedback += await self._label(session, sent)
                due = time.monotonic() + LABELS_EVERY_S
        while not all(one.done for one in sent):
            await asyncio.sleep(0.01)
        feedback += await self._label(session, sent)
        self.exhausted = True
        return feedback

    def _spare(self) -> Iterator[Mapping[str, Any]]:
        if self._rest is None:
            self._rest = iter(self.spare())
        return self._rest

    async def _label(self, session: aiohttp.ClientSession, sent: list[Sent]) -> int:
        """Labels of what has been answered since the last time, up to the first request that is still under way."""
        end = next((i for i in range(self._labelled, len(sent)) if not sent[i].done), len(sent))
        rows, self._labelled = feedback_of(sent[self._labelled : end]), end
        return await _send_labels(session, rows)

    async def _ready(self, session: aiohttp.ClientSession) -> bool:
        while True:
            over = self._over.is_set()
            try:
                async with session.get("/readyz") as answer:
                    if answer.status == 200:
                        return True
            except (aiohttp.ClientError, TimeoutError):
                pass
            if over:
                return False
            await asyncio.sleep(_READY_POLL_S)


async def _send(session: aiohttp.ClientSession, sent: Sent, at_once: asyncio.Semaphore) -> None:
    started = time.perf_counter()
    try:
        async with session.post("/predict", json=request_of(sent.row)) as answer:
            if answer.status == 200:
                body = await answer.json()
                sent.version, sent.answer = body["version"], body["predictions"][0]
            else:
                sent.error = f"{answer.status}: {(await answer.text())[:200]}"
    except (aiohttp.ClientError, TimeoutError) as error:
        sent.error = f"{type(error).__name__}: {error}"
    finally:
        sent.seconds, sent.done = time.perf_counter() - started, True
        at_once.release()


async def _send_labels(session: aiohttp.ClientSession, labels: list[dict[str, Any]]) -> int:
    """How many labels are safe with the server, new or known."""
    kept = 0
    for start in range(0, len(labels), FEEDBACK_ROWS):
        try:
            async with session.post("/feedback", json={"rows": labels[start : start + FEEDBACK_ROWS]}) as answer:
                if answer.status == 200:
                    kept += sum((await answer.json()).values())
        except (aiohttp.ClientError, TimeoutError):
            continue
    return kept
