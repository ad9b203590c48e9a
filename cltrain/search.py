"""A search over settings: the space, the candidates, and the trials that a budget pays for. Who runs them is not said
here."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cltrain.config import build, locate
from cltrain.errors import ConfigError, UpdateError
from cltrain.methods import Method
from cltrain.records import Json
from cltrain.seeding import derive_seed
from cltrain.storage import Storage, digest_json
from cltrain.train.settings import Training

GROUPS = ("model", "train", "method", "adapter")
UNSPENT = 0.05  # share of `max_rows` that is too little for another trial
NEWEST = 0.25  # share of a trial's rows that its stateful update has
DRAWS = 1_024


@dataclass(frozen=True, kw_only=True)
class Search:
    """space: dotted key of model, train, method or adapter -> list of choices, or range {low, high, log}, of whole
    numbers where both ends are; None: `usual`, less the keys that the model does not have. max_trials: at most, the
    settings as they are among them. max_rows: visits of rows over all trials. max_seconds: after which no trial is
    begun. validation_share: of the rows known now, the newest ones, on which trials are scored."""

    space: Mapping[str, object] | None = None
    usual: Mapping[str, object] = field(default_factory=dict)
    max_trials: int = 20
    max_rows: int | None = None
    max_seconds: float | None = None
    validation_share: float = 0.2
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0

    def __post_init__(self) -> None:
        if self.max_trials < 2:
            raise ConfigError(
                f"search.max_trials must be 2 or more, the first is of the settings as they are, not {self.max_trials}"
            )
        for name in ("max_rows", "max_seconds", "cpus_per_trial"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"search.{name} must be above 0, not {value}")
        if self.gpus_per_trial < 0:
            raise ConfigError(f"search.gpus_per_trial must be 0 or more, not {self.gpus_per_trial}")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"search.validation_share must be between 0 and 1, not {self.validation_share}")

    def checked(self, settings: Mapping[str, Any]) -> dict[str, Values]:
        """The space, each of whose keys and values fits `settings`. Raises `ConfigError` that names the key."""
        known = {f"{group}.{key}" for group in GROUPS for key in _keys(settings[group])}
        known -= {"model.name", *_not_taken(settings["model"])}
        if self.space is None:
            space = {key: values_of(key, value) for key, value in self.usual.items() if key in known}
        else:
            space = {key: values_of(key, value) for key, value in self.space.items()}
        if not space:
            raise ConfigError("search.space is empty: name a setting, such as {train.stateless.epochs: [2, 4, 8]}")
        for key, values in space.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"search settings of {', '.join(GROUPS)}"
                raise ConfigError(f"search.space: {key} is no setting that can be searched; {hint}")
            for value in values.extremes:
                changed = with_settings(settings, {key: value})
                try:
                    for group in GROUPS[1:]:  # a model needs the rows: see `rows_of_trials`
                        build(changed[group], group)
                except ConfigError as error:
                    raise ConfigError(f"search.space: {key}={value!r} cannot be: {error}") from error
        return space


@dataclass(frozen=True)
class Values:
    """What a setting may be: one of `choices`, or a number of a range."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.choices or (self.low, self.high)

    def at(self, share: float) -> Any:
        """The value below which a `share` in [0, 1) of all draws lie. Numbers have three digits.

        >>> Values(low=1e-4, high=1e-2, log=True).at(0.5), Values(low=1, high=4).at(0.99), Values(("a", "b")).at(0.5)
        (0.001, 4, 'b')
        """
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return min(max(round(value) if whole else float(f"{value:.3g}"), self.low), self.high)


def values_of(key: str, given: Any) -> Values:
    """Read a list of choices or a range."""
    if isinstance(given, list | tuple):
        if not given:
            raise ConfigError(f"search.space: {key} has no choices")
        if not all(choice is None or isinstance(choice, str | int | float | list) for choice in given):
            raise ConfigError(f"search.space: {key} must have choices that are plain values or lists of them")
        return Values(choices=tuple(given))
    if not isinstance(given, Mapping) or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"search.space: {key} must be a list of choices or {{low, high, log}}, not {given!r}")
    low, high, log = given["low"], given["high"], given.get("log", False)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high)) or not low < high:
        raise ConfigError(f"search.space: {key} must have numbers low < high, not {low!r} and {high!r}")
    if log and low <= 0:
        raise ConfigError(f"search.space: {key} cannot be searched by its logarithm from low={low}: make it above 0")
    return Values(low=low, high=high, log=bool(log))


def with_settings(settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> Json:
    """A copy of `settings` with the values of dotted keys replaced."""
    changed = copy.deepcopy(dict(settings))
    for key, value in chosen.items():
        *path, last = key.split(".")
        place = changed
        for name in path:
            place = place[name]
        place[last] = copy.deepcopy(value)
    return changed


def setting(settings: Mapping[str, Any], key: str) -> Any:
    for name in key.split("."):
        settings = settings[name]
    return settings


def candidates(space: Mapping[str, Values], settings: Mapping[str, Any], count: int, seed: int) -> list[Json]:
    """Up to `count` different points of the space; the first is what `settings` are now. The others are a scrambled
    Sobol sequence, which covers a space more evenly than random draws (Bergstra and Bengio 2012, section 4)."""
    found = [{key: setting(settings, key) for key in space}]
    seen = {digest_json(found[0])}
    points = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=derive_seed(seed, "search"))
    for point in points.draw(max(DRAWS, 2 * count), dtype=torch.float64).tolist():
        drawn = {key: values.at(share) for (key, values), share in zip(space.items(), point, strict=True)}
        if len(found) < count and (digest := digest_json(drawn)) not in seen:
            seen.add(digest)
            found.append(drawn)
    return found


def needs_stateful(space: Mapping[str, Values]) -> bool:
    """Whether the space has settings that a training from scratch does not feel."""
    return any(key.split(".")[0] == "method" or key.startswith("train.stateful.") for key in space)


def legs(rows: int, stateful: bool) -> tuple[int, int]:
    """How many of a trial's rows are for its training from scratch, and how many newer ones for its stateful update."""
    newest = round(rows * NEWEST) if stateful else 0
    return rows - newest, newest


def visits_of(settings: Mapping[str, Any], stateful: bool) -> Callable[[int], int]:
    """How often a trial of these settings visits rows, given how many it has; fewer if it stops early."""
    training: dict[str, Training] = build(settings["train"], "train")
    method: Method = build(settings["method"], "method")

    def visits(rows: int) -> int:
        first, newest = legs(rows, stateful and method.stateful and not method.restarts)
        total = _passes(training["stateless"], first)
        if newest:
            size = training["stateful"].plan(newest)[0]
            old = method.rehearse(size, rows, torch.Generator().manual_seed(0))
            total += math.ceil(_passes(training["stateful"], newest) * (1 + (0 if old is None else len(old)) / size))
        return total

    return visits


@dataclass(kw_only=True)
class Trials:
    """Which trial comes next, and when there are no more. The same candidates and results give the same trials, however
    many run at once and whichever ends first.

    Trials are begun as long as all their visits are paid for; then those that stopped early give back what they did
    not need. What is left when no whole trial fits any more goes to one of fewer rows.

    visits: of each candidate, by the number of rows. rows: that there are to train on. known: results by number of a
    search that was interrupted.
    """

    candidates: Sequence[Json]
    visits: Sequence[Callable[[int], int]]
    rows: int
    max_rows: int | None = None
    max_seconds: float | None = None
    known: Mapping[int, Json] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.over, self.results, self._spent = False, dict[int, Json](), 0
        self._begun: list[Json] = []
        self._open: list[int] = []  # trials whose planned visits count, not their real ones
        self._started = self.clock()
        if self.max_rows is not None and self.visits[0](self.rows) > self.max_rows:
            raise ConfigError(
                f"search.max_rows={self.max_rows} does not pay for one trial: the settings as they are visit "
                f"{self.visits[0](self.rows)} rows; raise it, or set snapshot.max_rows to train on fewer"
            )

    def begin(self) -> Json | None:
        """The next trial; None if there are no more (`over`), or none until those that run have ended."""
        while not self.over:
            number = len(self._begun)
            late = self.max_seconds is not None and self.clock() - self._started >= self.max_seconds
            if number == len(self.candidates) or late:
                self.over = True
                return None
            rows = self._affordable(number)
            if rows < self.rows and self._open:
                if any(i not in self.results for i in self._open):
                    return None
                self._spent += sum(self.results[i]["rows"] for i in self._open)
                self._open = []
                continue
            if not rows:
                self.over = True
                return None
            trial = {
                "trial": number,
                "settings": self.candidates[number],
                "of_rows": rows,
                "planned": self.visits[number](rows),
            }
            self._begun.append(trial)
            self._open.append(number)
            found = self.known.get(number)
            if found is None or any(found.get(key) != value for key, value in trial.items()):
                return trial
            self.results[number] = dict(found)
        return None

    def end(self, number: int, result: Mapping[str, Any] | None) -> Json:
        """Take a trial's score, rows and seconds; None if it was lost. Returns its line of the table."""
        lost = {"score": None, "rows": None, "seconds": None, "error": "its process was lost"}
        line = self._begun[number] | dict(result or lost)
        if line["rows"] is None:  # it failed, at worst when all was done
            line["rows"] = line["planned"]
        self.results[number] = line
        return line

    def table(self) -> list[Json]:
        return [self.results[number] for number in sorted(self.results)]

    def _affordable(self, number: int) -> int:
        """How many rows the next trial can have: all, fewer, or none if too little is left."""
        if self.max_rows is None:
            return self.rows
        visits = self.visits[number]
        rest = self.max_rows - self._spent - sum(self._begun[i]["planned"] for i in self._open)
        if visits(self.rows) <= rest:
            return self.rows
        if rest < UNSPENT * self.max_rows:
            return 0
        fits, too_many = 0, self.rows
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            fits, too_many = (middle, too_many) if visits(middle) <= rest else (fits, middle)
        return fits if fits > 1 else 0


@dataclass(frozen=True)
class TrialLog:
    """Trials in the store: a line each, under the name of the `work` that they share, so that a search which was
    interrupted or is given a larger budget need not repeat them; and one record of a search that has ended."""

    storage: Storage
    work: Json

    def known(self) -> dict[int, Json]:
        found = [self.storage.read_json(name) for name in self.storage.names(self._folder)]
        return {trial["trial"]: trial for trial in found}

    def keep(self, trial: Json) -> None:
        self.storage.write_json(f"{self._folder}/{trial['trial']:04d}.json", trial)

    def finish(self, record: Json) -> str:
        """Returns the name of the record, which is that of its content."""
        name = f"searches/{digest_json(record)[:32]}.json"
        self.storage.write_json(name, record)
        return name

    @property
    def _folder(self) -> str:
        return f"searches/{digest_json(self.work)[:32]}"


def best(table: Sequence[Json]) -> Json:
    """The trial with the lowest score, the earlier one of two alike. Raises `UpdateError` if none has a score."""
    scored = [trial for trial in table if trial["score"] is not None]
    if not scored:
        raise UpdateError(f"none of {len(table)} trials could be trained: {table[0]['error'] if table else 'no time'}")
    return min(scored, key=lambda trial: (trial["score"], trial["trial"]))


def _passes(training: Training, rows: int) -> int:
    learned = rows - training.validation_rows(rows)
    return training.plan(learned)[1] * learned if learned else 0


def _keys(settings: Any, path: str = "") -> list[str]:
    if not isinstance(settings, Mapping):
        return []
    found = [f"{path}{key}" for key in settings]
    return found + [deeper for key, value in settings.items() for deeper in _keys(value, f"{path}{key}.")]


def _not_taken(model: Mapping[str, Any]) -> set[str]:
    """Settings that are there and that the model has no use for, such as those of another model."""
    wanted = inspect.signature(locate(model.get("_target_"), "model._target_")).parameters
    if any(p.kind is p.VAR_KEYWORD for p in wanted.values()):
        return set()
    return {f"model.{key}" for key in model if key not in wanted and key != "_target_"}
