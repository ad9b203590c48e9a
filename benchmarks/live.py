"""The circle on live traffic: answers go out, labels come in through /feedback alone, and the next version learns them.

A first version learns from nine weeks of flights in Parquet (`python -m jobs.loop`), and is served (`python -m
jobs.serve`). Clients then ask for one flight after the other, week after week, in a request each whose unit is the
flight number, and send labels when flights have landed: `--late` of them days later, `--lost` never, `--twice` twice.
After each week `python -m jobs.loop +experiment=live_canary` (or `live_ab`) learns from what was served, and rolls the
version out on the traffic of the next week, which does not pause; time is compressed, and the roll-out's with it.

`ratio` is the log loss of what was answered over that of the version which served at first, on the same rows: for all
weeks, and for the week in which each version was rolled out. `rows` is what a version was trained on beside its parent,
and `exact` whether that is, row by row, what the clients' own record says was labelled in time. `s to answer` runs from
the last label of a week to the first answer of the version that learned it. `--poison WEEK` turns all labels of a week
around.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cltrain.data.flights import FlightsSource
from cltrain.data.holdout import is_held_out
from cltrain.data.snapshot import read_rows
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME, Round, Window
from cltrain.registry import Registry, RoundLog, Store
from cltrain.registry.deployment import Deployments
from cltrain.seeding import hash_ids
from cltrain.train.predictor import Predictor
from serve.local import free_port
from serve.traffic import loss_of, request_of

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
MODEL = "default"
WEEK = timedelta(days=7)
FIRST, HISTORY_WEEKS = datetime(2013, 1, 1, tzinfo=UTC), 9
LIVE = FIRST + HISTORY_WEEKS * WEEK
COLUMNS = {"event_id": EVENT_ID, "event_time": EVENT_TIME, "late": LABEL, "label_time": LABEL_TIME}
LABELS_EVERY_S, LABELS_AT_ONCE = 0.25, 500
AT_ONCE = 32  # requests under way at most: where that is not enough for the rate, time goes by more slowly
FLUSH_S = 1.5  # until answers are on disk, where a loop finds them
PACE = {  # what takes hours in `conf/experiment` takes seconds here
    "canary": ["rollout.min_s=2"],
    "ab": ["rollout.cycle=4s"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rollout", choices=[*PACE, "both"], default="both")
    parser.add_argument("--weeks", type=int, default=6, help="to learn from, before the last one (default 6)")
    parser.add_argument("--rate", type=float, default=90.0, help="requests a second at most (default 90)")
    parser.add_argument("--share", type=float, default=0.55, help="of the flight numbers (default 0.55)")
    parser.add_argument("--late", type=float, default=0.03, help="share of labels one to ten days late (default 0.03)")
    parser.add_argument("--lost", type=float, default=0.01, help="share of labels that never come (default 0.01)")
    parser.add_argument("--twice", type=float, default=0.02, help="share of labels sent again a day later")
    parser.add_argument("--poison", type=int, default=0, help="week whose labels are turned around, from 1 (0: none)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the loop job")
    parser.add_argument("--keep", type=Path, help="leave stores and logs of the jobs in this folder")


def run(options: argparse.Namespace) -> list[Row]:
    if not 0 <= options.poison <= options.weeks or options.weeks < 1:
        raise SystemExit(f"error: --poison must be a week from 1 to --weeks={options.weeks}, or 0 for none")
    kinds = list(PACE) if options.rollout == "both" else [options.rollout]
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cltrain-live-") as folder:
        for kind, seed in itertools.product(kinds, range(options.seeds)):
            place = Path(options.keep or folder, f"{kind}-{seed}")
            shutil.rmtree(place, ignore_errors=True)
            found += asyncio.run(Live(kind, seed, place, options).run())
    return found


def flights(start: datetime, end: datetime, share: float) -> list[Row]:
    """Events of `[start, end)` by departure, of a share of the flight numbers."""
    source = FlightsSource(path=str(ROOT / "datasets/flights"))
    source.prepare()
    names = [n for n in source.files() if f"{start:%Y-%m-%d}" <= n.removesuffix(".parquet") < f"{end:%Y-%m-%d}"]
    table = pa.concat_tables([pq.read_table(Path(source.path, name)) for name in names])
    table = table.rename_columns([COLUMNS.get(name, name) for name in table.column_names])
    units = pa.array([unit_of(id_) for id_ in table.column(EVENT_ID).to_pylist()])
    return table.filter(pa.array(hash_ids(units, salt=1) < share)).to_pylist()


def unit_of(event_id: str) -> str:
    """`UA-1545-EWR-20130101T1015` is a flight of UA-1545: what its passengers are told is told by one version."""
    return "-".join(event_id.split("-")[:2])


@dataclass(slots=True)
class Asked:
    """A flight, what was answered when, and the label that was sent for it: known (to the clients) at `label_time`, and
    safe with the server at `acked`, both None until then."""

    row: Row
    week: int
    probability: float = float("nan")
    request_id: str = ""
    version: str = ""
    answered: float = 0.0
    error: str | None = None
    label_time: datetime | None = None
    acked: float | None = None


@dataclass(order=True)
class Due:
    at: datetime
    number: int
    asked: Asked = field(compare=False)
    label: dict[str, Any] = field(compare=False)


@dataclass
class Job:
    """A loop job after a week: when it was started, when the week's last label was safe, and its end."""

    week: int
    started: float
    last_label: float
    done: asyncio.Task[None]


class Live:
    """One store, its application, its clients and its weekly jobs."""

    def __init__(self, kind: str, seed: int, place: Path, options: argparse.Namespace) -> None:
        self.kind, self.options, self.place = kind, options, place
        self.root, self.history = place / "store", place / "history"
        self.generator = np.random.default_rng((seed, 1))
        self.asked: list[Asked] = []
        self.due: list[Due] = []
        self.jobs: list[Job] = []
        self.sent: Counter[str] = Counter()
        self.port = free_port("127.0.0.1", 0)
        self.places = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> list[Row]:
        self.place.mkdir(parents=True)
        self._make_history()
        await self._job(
            "history",
            "jobs.loop",
            *("data=parquet", f"data.path={self.history}", "data.event_time=event_time", "data.label=late"),
            *("data.label_time=label_time", "data.event_id=event_id", "data.time_features=false"),
            *("window.bootstrap=8", "serve=none", "tracking=files", "cluster.workers=0"),
        )
        registry = Registry(Store(root=str(self.root)), MODEL)
        first = registry.champion()
        assert first is not None
        async with self._serving(), aiohttp.ClientSession(f"http://127.0.0.1:{self.port}") as session:
            for week in range(1, self.options.weeks + 2):
                await self._week(session, week)
        return self._rows(registry, first.version, first.state)

    def _make_history(self) -> None:
        self.history.mkdir()
        source = FlightsSource(path=str(ROOT / "datasets/flights"))
        source.prepare()
        for name in source.files():
            if name < f"{LIVE:%Y-%m-%d}":
                os.link(Path(source.path, name), self.history / name)

    async def _job(self, name: str, module: str, *overrides: str) -> None:
        """A job as a user starts it; raises with its last lines where it fails."""
        process = await self._start(name, module, *overrides)
        if await process.wait():
            said = (self.place / f"{name}.txt").read_text().splitlines()[-5:]
            raise RuntimeError(f"{module} {' '.join(overrides)}: " + "\n".join(said))

    async def _start(self, name: str, module: str, *overrides: str) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", module, f"hydra.run.dir={self.place / name}", f"store.root={self.root}"]
        with (self.place / f"{name}.txt").open("wb") as said:
            return await asyncio.create_subprocess_exec(
                *command,
                *overrides,
                cwd=self.place,  # where store/latest may name its store
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        process = await self._start("serve", "jobs.serve", f"serve.port={self.port}", "cluster.num_cpus=2")
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}") as session:
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        if (await session.get("/readyz")).status == 200:
                            break
                    if process.returncode is not None:
                        raise RuntimeError((self.place / "serve.txt").read_text())
                    await asyncio.sleep(0.2)
            yield
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def _week(self, session: aiohttp.ClientSession, week: int) -> None:
        """All flights of a week, and all labels that become known while they are asked for; then the job that learns
        from it, which goes on while the next week does."""
        start = LIVE + (week - 1) * WEEK
        rows = flights(start, start + WEEK, self.options.share)
        began, labels_at = time.perf_counter(), 0.0
        async with asyncio.TaskGroup() as group:
            for index, row in enumerate(rows):
                if (wait := began + index / self.options.rate - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                await self.places.acquire()
                self.asked.append(Asked(row, week))
                group.create_task(self._ask(session, self.asked[-1])).add_done_callback(lambda _: self.places.release())
                if time.perf_counter() >= labels_at:
                    labels_at = time.perf_counter() + LABELS_EVERY_S
                    await self._label(session, row[EVENT_TIME])
        await self._label(session, start + WEEK)
        last_label = time.perf_counter()
        if week > self.options.weeks:
            await asyncio.gather(*(job.done for job in self.jobs))
            return
        await asyncio.sleep(FLUSH_S)
        if self.jobs:
            await self.jobs[-1].done
        overrides = [f"+experiment=live_{self.kind}", f"serve.url=http://127.0.0.1:{self.port}", *PACE[self.kind]]
        wait_s = 0.8 * len(rows) / self.options.rate  # the job is over before the next one is due
        overrides += [f"rollout.wait_s={wait_s}", "tracking=files", "cluster.workers=0"]
        started = time.perf_counter()
        job = asyncio.create_task(self._job(f"week-{week}", "jobs.loop", *overrides, *self.options.set))
        self.jobs.append(Job(week, started, last_label, job))

    async def _ask(self, session: aiohttp.ClientSession, one: Asked) -> None:
        try:
            body = {**request_of(one.row), "unit_id": unit_of(one.row[EVENT_ID])}
            async with session.post("/predict", json=body) as answer:
                if answer.status != 200:
                    one.error = f"{answer.status}: {(await answer.text())[:200]}"
                    return
                said = await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            one.error = f"{type(error).__name__}: {error}"
            return
        one.answered = time.perf_counter()
        one.version = said["version"].rpartition(":")[2]
        (found,) = said["predictions"]
        one.request_id, one.probability = found["request_id"], found["probability"]
        self._plan(one)

    def _plan(self, one: Asked) -> None:
        """When the label of a flight becomes known, if ever."""
        row, options = one.row, self.options
        if row[LABEL] is None:
            self.sent["none"] += 1
            return
        fate = self.generator.random()
        if fate < options.lost:
            self.sent["lost"] += 1
            return
        at = max(row[LABEL_TIME], row[EVENT_TIME])
        if fate < options.lost + options.late:
            self.sent["late"] += 1
            at += timedelta(days=1 + 9 * self.generator.random())
        turned = one.week == options.poison
        label = {"event_id": row[EVENT_ID], "label": int(row[LABEL]) ^ turned, "label_time": at.isoformat()}
        heapq.heappush(self.due, Due(at, len(self.asked), one, label))
        if fate > 1 - options.twice:
            self.sent["twice"] += 1
            heapq.heappush(self.due, Due(at + timedelta(days=1), len(self.asked), one, label))

    async def _label(self, session: aiohttp.ClientSession, now: datetime) -> None:
        """Send all labels that are known before `now`."""
        ready: list[Due] = []
        while self.due and self.due[0].at < now:
            ready.append(heapq.heappop(self.due))
        for start in range(0, len(ready), LABELS_AT_ONCE):
            some = ready[start : start + LABELS_AT_ONCE]
            async with session.post("/feedback", json={"rows": [one.label for one in some]}) as answer:
                answer.raise_for_status()
            for one in some:
                self.sent["labels"] += 1
                if one.asked.acked is None:
                    one.asked.label_time = datetime.fromisoformat(one.label["label_time"])
                    one.asked.acked = time.perf_counter()

    def _rows(self, registry: Registry, first: str, state: str) -> list[Row]:
        storage = registry.store.storage
        answered = [one for one in self.asked if one.error is None and one.row[LABEL] is not None]
        static = losses(Predictor.load(storage, state), answered)
        ours = np.array([loss_of({"probability": one.probability}, one.row[LABEL]) for one in answered])
        weeks = np.array([one.week for one in answered])
        rounds = {r.index: r for r in RoundLog(registry.store, MODEL).finished()}
        ends = {trial.version: trial for trial in Deployments(registry).trials()}
        made = list(self._made(registry, rounds))
        versions: list[Row] = []
        for job, round_, version, rows, exact in made:
            trial = ends.get(version)
            verdict = registry.version(version).verdict
            status = "rejected" if not verdict.accepted else trial.status if trial else str(round_.status)
            reason = trial.reason if trial else "; ".join(verdict.reasons)
            answers = [one.answered for one in self.asked if one.version == version and one.answered > job.last_label]
            here = weeks == job.week + 1
            versions.append(
                {
                    "name": f"live {self.kind} week {job.week}{' poisoned' * (job.week == self.options.poison)}",
                    "ratio": float(ours[here].mean() / static[here].mean()),
                    "version": version,
                    "ended": status,
                    "rows": rows,
                    "exact": exact,
                    "s to answer": min(answers) - job.last_label if answers else None,
                    "reason": reason[:60],
                }
            )
        outcomes = Counter(row["ended"] for row in versions)
        failed = [one.error for one in self.asked if one.error is not None]
        whole: Row = {
            "name": f"live {self.kind}, {self.options.weeks} weeks" + ", one poisoned" * bool(self.options.poison),
            "ratio": float(ours.mean() / static.mean()),
            "log loss": float(ours.mean()),
            "never updated": float(static.mean()),
            "requests": len(self.asked),
            "failed": len(failed),
            "labels": self.sent["labels"],
            "lost": self.sent["lost"],
            "late": self.sent["late"],
            "twice": self.sent["twice"],
            "versions": len(versions),
            "ended": ", ".join(f"{count} {name}" for name, count in outcomes.items()),
            "rows": sum(row["rows"] for row in versions),
            "exact": all(row["exact"] for row in versions),
        }
        return [whole, *versions]

    def _made(self, registry: Registry, rounds: dict[int, Round]) -> Iterator[tuple[Job, Round, str, int, bool]]:
        """Each version of the live weeks, with its job and round, its rows, and whether they are those on record."""
        storage = registry.store.storage
        until: dict[str | None, datetime] = {v.state: v.challenger.cursor.until for v in registry.versions()}
        started = {LIVE + job.week * WEEK: job.started for job in self.jobs}
        for job in self.jobs:
            round_ = rounds[HISTORY_WEEKS - 8 + job.week]
            for about in round_.versions:
                version = registry.version(about["version"])
                share = registry.settings(version.version)["snapshot"]["holdout_share"]
                parent = until[version.challenger.parent]
                had = self._known(parent, started.get(parent, -math.inf))
                broken = [r.window for r in rounds.values() if r.index < round_.index and not r.sound]
                expected = self._known(round_.window.end, job.started, broken) - had
                ids = sorted(expected)
                kept = set(np.array(ids)[~is_held_out(pa.array(ids), share)]) if ids else set()
                rows = read_rows(storage, version.challenger.snapshot.digest).column(EVENT_ID).to_pylist()
                yield job, round_, version.version, len(rows), set(rows) == kept and len(rows) == len(kept)

    def _known(self, until: datetime, before: float, broken: Sequence[Window] = ()) -> set[str]:
        """Request ids whose label, known before `until`, the server had `before` a job began; without flights of
        windows that were found to be `broken`."""
        return {
            one.request_id
            for one in self.asked
            if one.acked is not None
            and one.acked < before
            and one.label_time is not None
            and max(one.label_time, one.row[EVENT_TIME]) < until
            and not any(window.start <= one.row[EVENT_TIME] < window.end for window in broken)
        }


def losses(predictor: Predictor, asked: Sequence[Asked]) -> np.ndarray:
    """(N,) losses of a version on the same rows, in nats."""
    found: list[float] = []
    for start in range(0, len(asked), 1000):
        some = asked[start : start + 1000]
        answers = predictor.answer([{**request_of(one.row)["rows"][0]["features"], **_time(one)} for one in some])
        found += [loss_of(answer, one.row[LABEL]) for answer, one in zip(answers, some, strict=True)]
    return np.array(found)


def _time(one: Asked) -> Row:
    return {EVENT_TIME: one.row[EVENT_TIME]}
