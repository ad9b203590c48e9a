"""Streams that drift in known ways, and windows that are poisoned, for `gate.py`.

Each stream is a table of events a week, held in memory: `weeks` windows, of which the first is the bootstrap. A world
says how likely a label is, given the features and the week.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from cltrain.data.schema import Columns, Feature, Schema
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME

START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
SHOPS = np.array(list("abcdefgh"))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A made table: `rows` a week, of a task, with a drift."""

    name: str
    task: str
    rows: int
    drift: str = "none"
    base: float = 0.0
    bootstrap: int = 4

    @property
    def schema(self) -> Schema:
        numeric = [Feature(name=n, kind="numeric") for n in ("x0", "x1", "x2", "x3", "price", "age")]
        return Schema(
            columns=Columns(event_time="when", label="y", task=self.task),
            features=(*numeric, Feature(name="shop", kind="categorical"), Feature(name="device", kind="categorical")),
        )

    def week(self, number: int, seed: int) -> pa.Table:
        """Events of week `number`; week 0 is as long as `bootstrap` weeks."""
        generator = np.random.default_rng((seed, number))
        rows = self.rows * (self.bootstrap if number == 0 else 1)
        x = generator.normal(size=(rows, 4))
        price, age = np.exp(generator.normal(3, 1, rows)), generator.integers(18, 80, rows).astype(np.float64)
        shop, device = SHOPS[generator.integers(0, 8, rows)], np.array(["web", "app"])[generator.integers(0, 2, rows)]
        odds = self._odds(number, x, price, age, shop, device)
        if self.task == "binary":
            label = pa.array((generator.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.float64))
        elif self.task == "regression":
            label = pa.array(np.exp(3 + 0.4 * odds) + 5 * generator.normal(size=rows))
        else:
            second = 1.2 * x[:, 2] - 0.8 * (device == "app")
            logits = np.stack([odds, second, np.zeros(rows)], 1) + generator.gumbel(size=(rows, 3))
            label = pa.array(np.array(["buy", "look", "leave"])[logits.argmax(1)], pa.string())
        start = START + WEEK * (0 if number == 0 else self.bootstrap + number - 1)
        when = pa.array(np.full(rows, np.datetime64(start.replace(tzinfo=None), "us"))).cast(pa.timestamp("us", "UTC"))
        columns = {EVENT_ID: [f"{seed}-{number}-{i}" for i in range(rows)], EVENT_TIME: when, LABEL_TIME: when}
        columns |= {LABEL: label} | {f"x{i}": x[:, i] for i in range(4)}
        return pa.table(columns | {"price": price, "age": age, "shop": shop, "device": device})

    def _odds(
        self, week: int, x: np.ndarray, price: np.ndarray, age: np.ndarray, shop: np.ndarray, device: np.ndarray
    ) -> np.ndarray:
        angle = {"slow": 0.05, "fast": 0.25}.get(self.drift, 0.0) * week
        base = self.base + {"prior": 0.15 * week}.get(self.drift, 0.0)
        if self.drift == "season":
            base += 0.8 * np.sin(week / 2)
        if self.drift == "jump" and week >= 5:
            angle = np.pi / 2
        move = 0.3 * week if self.drift == "covariates" else 0.0
        a, b = x[:, 0] + move, x[:, 1]
        main = 1.6 * (np.cos(angle) * a + np.sin(angle) * b)
        return (
            base
            + main
            + 0.8 * (x[:, 2] > 0.5) * x[:, 3]
            - 0.5 * (np.log(price) - 3)
            + 0.02 * (age - 49)
            + 0.6 * np.isin(shop, ["a", "b"])
            - 0.4 * (device == "app")
        )


STREAMS = {
    s.name: s
    for s in (
        Stream(name="clicks", task="binary", rows=2_000, drift="slow", base=-1.5),
        Stream(name="kinds", task="multiclass", rows=2_000, drift="slow"),
        Stream(name="amounts", task="regression", rows=2_000, drift="slow"),
        Stream(name="small", task="binary", rows=800, drift="slow"),
    )
}
DRIFTS = ("none", "slow", "fast", "jump", "prior", "season", "covariates")


def flipped(table: pa.Table, task: str, generator: np.random.Generator, share: float = 0.3) -> pa.Table:
    """A share of the labels is another class, or that of another row."""
    labels = table.column(LABEL).to_numpy(zero_copy_only=False)
    hit = generator.random(len(labels)) < share
    if task == "binary":
        changed = np.where(hit, 1 - labels, labels)
    elif task == "regression":
        changed = np.where(hit, generator.permutation(labels), labels)
    else:
        classes = np.unique(labels)
        place = np.searchsorted(classes, labels)
        other = (place + generator.integers(1, len(classes), len(labels))) % len(classes)
        changed = classes[np.where(hit, other, place)]
    return _with(table, LABEL, pa.array(changed, table.schema.field(LABEL).type))


def scaled(table: pa.Table, task: str, generator: np.random.Generator, factor: float = 1_000.0) -> pa.Table:
    return _with(table, "x0", pa.array(table.column("x0").to_numpy() * factor))


def dropped(table: pa.Table, task: str, generator: np.random.Generator) -> pa.Table:
    """No row of one class, or of a regression none whose label is above the median."""
    labels = table.column(LABEL).to_numpy(zero_copy_only=False)
    keep = labels <= np.median(labels) if task == "regression" else labels != np.unique(labels)[-1]
    return table.filter(pa.array(keep))


POISONS: dict[str, Callable[..., pa.Table]] = {
    "labels flipped": flipped,
    "feature x1000": scaled,
    "class dropped": dropped,
}


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name), values)
