"""`report.html`: what a run came to, on one page that needs nothing else."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from cltrain.errors import ConfigError
from cltrain.records import Json, Round, RunInfo
from cltrain.storage import Storage
from cltrain.tracking import charts
from cltrain.tracking.base import Tracker
from cltrain.tracking.headlines import count, duration, facts, figure, sentence, tiles
from cltrain.tracking.history import (
    METRICS,
    Entry,
    cost,
    entries,
    finite,
    number,
    redacted,
    served_requests,
    stateless_epochs,
    transfer,
)
from cltrain.tracking.matrix import matrix

NAME = "report.html"


@dataclass(kw_only=True, eq=False)
class HtmlReport(Tracker):
    """Writes the page when the job ends and after every `every_rounds` rounds, 0 for only at the end."""

    every_rounds: int = 10

    def __post_init__(self) -> None:
        if self.every_rounds < 0:
            raise ConfigError(
                f"tracking.report.every_rounds must be 0 (only at the end) or more, not {self.every_rounds}"
            )
        self._run: RunInfo | None = None
        self._rounds: list[Round] = []

    def start(self, run: RunInfo, rounds: list[Round]) -> None:
        self._run, self._rounds = run, list(rounds)

    def finished(self, round_: Round) -> None:
        self._rounds.append(round_)
        if self.every_rounds and len(self._rounds) % self.every_rounds == 0:
            self._write(self._rounds, None)

    def close(self, rounds: list[Round], summary: Json) -> None:
        self._write(rounds, summary)

    def _write(self, rounds: Sequence[Round], summary: Json | None) -> None:
        if self._run is None:
            raise RuntimeError("HtmlReport was not started")
        Storage(self._run.run_dir).write(NAME, render(self._run, rounds, summary).encode())


def render(run: RunInfo, rounds: Sequence[Round], summary: Json | None = None, written: datetime | None = None) -> str:
    """The page. Without `summary` the run goes on, and totals are those of `rounds`."""
    found, epochs = entries(rounds), stateless_epochs(run.settings)
    points = cost(rounds, epochs)
    drawn = {c.id: c for c in _charts(run, rounds, found, points)}
    label = METRICS.get(run.metric, (run.metric, None))[0]
    written = written or datetime.now(UTC)
    return _template().render(
        run=run,
        store=redacted(run.store),
        rounds=rounds,
        done=summary is not None,
        said=sentence(run, rounds, found, summary),
        span=f"{charts.day(rounds[0].window.start)} to {charts.day(rounds[-1].window.end)}" if rounds else "",
        written=written.strftime("%Y-%m-%d %H:%M UTC"),
        tiles=tiles(run, rounds, found, points, summary),
        facts=facts(transfer(found)),
        charts=dict.fromkeys(("prequential", "verdicts", "lineage", "transfer", "cost")) | drawn,
        epochs=epochs,
        metric=label[:1].upper() + label[1:],
        rows=[_row(r, found, run.metric) for r in rounds],
        statuses=Counter(r.status for r in rounds),
        settings=yaml.safe_dump(finite(redacted(run.settings)), sort_keys=False, allow_unicode=True, width=110),
        css=_asset("report.css"),
        js=_asset("report.js"),
        plotly=_plotly(),
        figures=script_json([_figure(c) for c in drawn.values()]),
    )


def _charts(run: RunInfo, rounds: Sequence[Round], found: Sequence[Entry], points: Sequence[Any]) -> list[charts.Chart]:
    made = [charts.prequential(rounds, found, run.metric), charts.differences(found)]
    if found:
        made += [charts.lineage(found, len(rounds)), matrix(found), charts.row_visits(points)]
    return [c for c in made if c.variants and c.rows]


def _figure(chart: charts.Chart) -> Json:
    return {
        "id": chart.id, "variants": chart.variants, "columns": chart.columns, "rows": chart.rows,
        "height": chart.height_px, "scroll": chart.scroll_px, "shared": chart.shared,
    }  # fmt: skip


def _row(r: Round, found: Sequence[Entry], metric: str) -> Json:
    seen = r.observation
    answered, failed = served_requests(r)
    notes = [] if r.status == "quarantined" else list(seen.problems)
    if r.status == "quarantined" and seen.labelled:
        notes.append(f"{count(seen.labelled)} rows set aside")
    return {
        "index": r.index,
        "start": charts.day(r.window.start),
        "end": charts.day(r.window.end),
        "status": r.status,
        "why": charts.why(r),
        "notes": notes,
        "versions": [_version(e) for e in found if e.round is r],
        "metric": figure(number(seen.prequential.get(metric))),
        "static": figure(never) if (never := number(seen.static.get(metric))) is not None else "",
        "events": count(seen.events),
        "labelled": count(seen.labelled) if seen.labelled != seen.events else "",
        "late": count(seen.late_labels),
        "served": count(answered),
        "failed": count(failed) if failed else "",
        "seconds": duration(r.seconds),
        "traffic": duration(r.freshness_s) if r.freshness_s is not None else "",
    }


def _version(e: Entry) -> Json:
    origin = f"continues {e.data['parent']}" if e.data.get("parent") else "from scratch"
    if e.data.get("compared_to"):
        origin += f", compared to {e.data['compared_to']}"
    visits = f"{count(e.data.get('rows'))} rows, {count(e.data.get('rows_trained'))} row visits"
    if e.data.get("rows_replayed"):
        visits += f", {count(e.data['rows_replayed'])} of them replayed"
    return {
        "version": e.version,
        "kind": e.kind,
        "fate": charts.FATES[e.fate],
        "badge": "rejected" if e.fate == "rejected" else "promoted",
        "details": [*e.reasons, origin, f"{visits}, {duration(e.data.get('seconds'))}"],
    }


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no `<`, `>` or `&`."""
    text = json.dumps(finite(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("report.html.j2"))


@functools.cache
def _asset(name: str) -> Markup:
    return Markup(resources.files("cltrain.tracking").joinpath(name).read_text("utf-8"))


@functools.cache
def _plotly() -> Markup:
    """plotly.js as it comes with the package; read without importing the rest of it."""
    return Markup(resources.files("plotly").joinpath("package_data/plotly.min.js").read_text("utf-8"))
