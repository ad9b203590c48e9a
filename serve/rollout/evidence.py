"""What each arm of a roll-out has done, counted by every replica and added up over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from cltrain.records import Json
from cltrain.storage import Storage

FOLDER = "evidence"
OCTAVE = 8  # buckets of latency for each doubling, so each is 9 % wide
LATENCY_BUCKETS = 27 * OCTAVE  # up to 134 s
SCORE_BINS = 20


@dataclass
class Counters:
    """Of one arm: requests, of which errors raised, non_finite gave no finite answer; rows answered, of which repeats
    had the very score of the row before. latency: requests by bucket of `latency_bucket`. scores: rows by bin.
    Of a shadow: shed requests, rows compared with the live answer, of which agreed had its label (or a value within the
    tolerance), and the sum of absolute score differences."""

    requests: int = 0
    errors: int = 0
    non_finite: int = 0
    rows: int = 0
    repeats: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    scores: list[int] = field(default_factory=lambda: [0] * SCORE_BINS)
    shed: int = 0
    crashes: int = 0
    compared: int = 0
    agreed: int = 0
    difference: float = 0.0
    last: float | None = None

    def answered(self, seconds: float | None, scores: Sequence[float], bins: Sequence[int]) -> None:
        """One request that was answered, with the score of each of its rows and the bin that it falls into. seconds:
        None for one that was answered together with others."""
        self.requests += 1
        if seconds is not None:
            self.latency[latency_bucket(seconds)] += 1
        self.rows += len(scores)
        last = self.last
        for score, place in zip(scores, bins, strict=True):
            self.scores[place] += 1
            if score == last:
                self.repeats += 1
            last = score
        self.last = last

    def failed(self, seconds: float, *, finite: bool = True) -> None:
        """One request without an answer: an exception, or a number that is not finite."""
        self.requests += 1
        self.latency[latency_bucket(seconds)] += 1
        if finite:
            self.errors += 1
        else:
            self.non_finite += 1

    def __add__(self, other: Counters) -> Counters:
        def total(a: Any, b: Any) -> Any:
            return [x + y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b

        names = [f.name for f in fields(self) if f.name != "last"]
        return Counters(**{name: total(getattr(self, name), getattr(other, name)) for name in names})

    @property
    def timed(self) -> int:
        """Requests whose latency is known."""
        return sum(self.latency)

    def quantile_s(self, q: float) -> float | None:
        """Upper edge of the bucket in which the quantile of the latencies lies, in seconds; None without requests."""
        wanted, seen = q * self.timed, 0
        for bucket, count in enumerate(self.latency):
            seen += count
            if count and seen >= wanted:
                return upper_edge_s(bucket)
        return None

    def slower_than(self, seconds: float) -> int:
        """Requests in buckets that lie above `seconds`."""
        return sum(self.latency[latency_bucket(seconds) + 1 :])

    def to_json(self) -> Json:
        value = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "last"}
        return value | {"latency": {str(i): n for i, n in enumerate(self.latency) if n}, "scores": list(self.scores)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counters:
        latency = [0] * LATENCY_BUCKETS
        for bucket, count in value["latency"].items():
            latency[int(bucket)] = count
        return cls(**{**value, "latency": latency})

    def summary(self) -> Json:
        """What a report shows."""
        shown: Json = {name: getattr(self, name) for name in ("requests", "errors", "non_finite", "rows", "repeats")}
        for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            seconds = self.quantile_s(q)
            shown[name] = None if seconds is None else round(1e3 * seconds, 4)
        if self.compared or self.shed or self.crashes:
            shown |= {"shed": self.shed, "crashes": self.crashes, "compared": self.compared}
            shown["agreement"] = self.agreed / self.compared if self.compared else None
            shown["mean_difference"] = self.difference / self.compared if self.compared else None
        return shown


def latency_bucket(seconds: float) -> int:
    """Bucket 0 holds what is below a microsecond, and eight more each doubling.

    >>> latency_bucket(2e-6), latency_bucket(1.0) - latency_bucket(0.5)
    (8, 8)
    """
    if seconds <= 1e-6:
        return 0
    return min(int(OCTAVE * math.log2(seconds * 1e6) + 1e-9), LATENCY_BUCKETS - 1)


def upper_edge_s(bucket: int) -> float:
    return 1e-6 * 2 ** ((bucket + 1) / OCTAVE)


@dataclass
class Sheet:
    """What one replica reports of one step of one roll-out: counters by arm, and how its staging went. ordered: bins of
    scores lie on a line, and are not classes."""

    roll_out: str
    step: int
    replica: str
    staged: bool = False
    problem: str | None = None
    ordered: bool = True
    arms: dict[str, Counters] = field(default_factory=dict)

    def arm(self, name: str) -> Counters:
        found = self.arms.get(name)
        return found if found is not None else self.arms.setdefault(name, Counters())

    @property
    def place(self) -> str:
        """Where it is in the store."""
        return f"{FOLDER}/{self.roll_out}/{self.step}-{self.replica}.json"

    def to_json(self) -> Json:
        about = {name: getattr(self, name) for name in ("roll_out", "step", "replica", "staged", "problem", "ordered")}
        return about | {"arms": {name: counters.to_json() for name, counters in list(self.arms.items())}}


@dataclass(frozen=True)
class Seen:
    """All sheets of a roll-out: counters by step and arm, the replicas that have staged the version, and what kept
    others from it."""

    steps: dict[int, dict[str, Counters]] = field(default_factory=dict)
    staged: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    ordered: bool = True

    def arm(self, name: str, step: int | None = None) -> Counters:
        """Of one step, or of all."""
        found = [arms[name] for at, arms in self.steps.items() if name in arms and step in (None, at)]
        return sum(found, start=Counters())


def read_evidence(storage: Storage, roll_out: str) -> Seen:
    """All that replicas have published of a roll-out, those that have died since among them."""
    steps: dict[int, dict[str, Counters]] = {}
    staged, problems, ordered = set(), [], True
    for name in storage.names(f"{FOLDER}/{roll_out}"):
        if name.rpartition("/")[2].startswith("."):
            continue
        value = storage.read_json(name)
        arms, ordered = steps.setdefault(value["step"], {}), value["ordered"]
        for arm, counters in value["arms"].items():
            arms[arm] = arms.get(arm, Counters()) + Counters.from_json(counters)
        if value["staged"]:
            staged.add(value["replica"])
        elif value["problem"]:
            problems.append(value["problem"])
    return Seen(steps, frozenset(staged), tuple(problems), ordered)
