"""`report.html` of `jobs.freshness`: what fresh data is worth, on one page that needs nothing else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import jinja2
import yaml

from cltrain.records import Json
from cltrain.tracking.base import Table
from cltrain.tracking.charts import Chart, short
from cltrain.tracking.headlines import count
from cltrain.tracking.headlines import duration as seconds_text
from cltrain.tracking.history import METRICS, finite, redacted
from cltrain.tracking.report import _asset, _figure, _plotly, script_json

NAME = "report.html"
COLOURS = ("--champion", "--rejected", "--accepted", "--good", "--now", "--static", "--edge", "--muted")


def render(summary: Json, written: datetime | None = None) -> str:
    """The page of a summary of `cltrain.freshness_job.run_freshness`."""
    label = METRICS.get(summary["metric"], (summary["metric"], None))[0]
    drawn = [c for c in (_curve(summary, label), _matrix(summary, label), *_slices(summary, label)) if c.rows]
    drawn += [c for c in (_cadence(summary, label), _parts(summary, label)) if c.rows]
    written = written or datetime.now(UTC)
    return _template().render(
        s=summary,
        metric=label,
        charts=dict.fromkeys(("slices", "lengths")) | {c.id: c for c in drawn},
        tiles=_tiles(summary),
        advice={mode: of["advice"] for mode, of in summary["modes"].items()},
        written=written.strftime("%Y-%m-%d %H:%M UTC"),
        settings=yaml.safe_dump(finite(redacted(summary["freshness"])), sort_keys=False, allow_unicode=True, width=110),
        store=redacted(summary["store"]),
        css=_asset("report.css"),
        js=_asset("report.js"),
        plotly=_plotly(),
        figures=script_json([_figure(c) for c in drawn]),
    )


def tables(summary: Json) -> dict[str, Table]:
    """Columns and rows of every chart, for trackers that have tables."""
    label = METRICS.get(summary["metric"], (summary["metric"], None))[0]
    made = [_curve(summary, label), _matrix(summary, label), *_slices(summary, label), _cadence(summary, label)]
    return {f"freshness/{c.id}": (c.columns, c.rows) for c in (*made, _parts(summary, label)) if c.rows}


def _tiles(summary: Json) -> list[Json]:
    interval = summary["half_life_interval"]
    oldest, cost = summary["curve"][-1], summary["cost"]
    found = [
        {"name": "Update every", "value": summary["recommended_every"], "more": summary["advice"][0]},
        {
            "name": "Half-life",
            "value": interval["duration"] or "unknown",
            "more": interval["reason"] or f"{_between(interval)} periods of {summary['every']}",
        },
        {
            "name": f"Lost at age {oldest['age']}",
            "value": f"{oldest['loss_delta']:+.4f}",
            "more": f"{oldest['low']:+.4f} to {oldest['high']:+.4f}, over {oldest['n']} windows",
        },
        {
            "name": "Trainings",
            "value": count(cost["trainings"]),
            "more": f"{seconds_text(cost['train_seconds'])} of training, {cost['kwh']:.3g} kWh",
        },
    ]
    if cost["naive_ratio"]:
        more = f"{count(cost['stateless_trainings_naive'])} trainings of the curve were there one for each cell"
        found.append({"name": "Saved by sharing", "value": f"{cost['naive_ratio']:.1f}×", "more": more})
    return found


def _between(interval: Json) -> str:
    low, high = (("?" if v is None else f"{v:.2g}") for v in (interval["low"], interval["high"]))
    return f"{low} to {high}"


def _lines(points: Sequence[Json], name: str, colour: str) -> list[Json]:
    ages = [p["age"] for p in points]
    low, high = (
        [short(p["loss_delta"] - p["low"]) for p in points],
        [short(p["high"] - p["loss_delta"]) for p in points],
    )
    error = {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "width": 4, "thickness": 1.4}
    return [
        {
            "type": "scatter", "mode": "markers", "name": name, "x": ages,
            "y": [short(p["loss_delta"]) for p in points],
            "marker": {"color": colour, "size": 8}, "error_y": {**error, "color": colour},
            "hovertemplate": f"age %{{x}}: %{{y:+.4f}}<extra>{escape(name)}</extra>",
        },
        _smooth(f"{name}, monotone", ages, [short(p["isotonic"]) for p in points], colour, "solid"),
        _smooth(f"{name}, exponential", ages, [short(p["fitted"]) for p in points], colour, "dot"),
    ]  # fmt: skip


def _smooth(name: str, x: list[Any], y: list[Any], colour: str, dash: str) -> Json:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": x, "y": y,
        "line": {"color": colour, "width": 1.6, "dash": dash}, "hoverinfo": "skip",
    }  # fmt: skip


def _ages(summary: Json, label: str) -> Json:
    return {
        "xaxis": {"title": {"text": f"age at the start of the window, in periods of {summary['every']}"}},
        "yaxis": {"title": {"text": f"{escape(label)} lost · lower is better"}, "zeroline": True},
    }


def _curve(summary: Json, label: str) -> Chart:
    variants, rows = [], []
    for mode, of in summary["modes"].items():
        lines = _lines(of["curve"], mode, "--champion")
        variants.append({"key": mode, "label": mode, "data": lines, "layout": _ages(summary, label)})
        rows += [(mode, *_point(p)) for p in of["curve"]]
    return Chart(
        id="curve",
        label="Quality lost against age, with intervals over evaluation windows and seeds",
        variants=tuple(variants),
        columns=("mode", *POINT),
        rows=tuple(rows),
        height_px=400,
    )


POINT = ("age", "loss lost", "low", "high", "windows", "monotone", "exponential")


def _point(p: Json) -> tuple[Any, ...]:
    return (
        p["age"],
        *map(short, (p["loss_delta"], p["low"], p["high"])),
        p["n"],
        short(p["isotonic"]),
        short(p["fitted"]),
    )


def _slices(summary: Json, label: str) -> list[Chart]:
    variants, rows = [], []
    for mode, of in summary["modes"].items():
        lines: list[Json] = []
        for i, s in enumerate(of["slices"]):
            points, _, fitted = _lines(s["curve"], s["slice"], COLOURS[i % len(COLOURS)])
            lines += [points, {**fitted, "showlegend": False}]
            rows += [
                (mode, s["slice"], s["rows"], s["half_life"] and short(s["half_life"]), *_point(p)) for p in s["curve"]
            ]
        if lines:
            variants.append({"key": mode, "label": mode, "data": lines, "layout": _ages(summary, label)})
    if not variants:
        return []
    return [
        Chart(
            id="slices",
            label="Quality lost against age, for each slice",
            variants=tuple(variants),
            columns=("mode", "slice", "rows", "half-life", *POINT),
            rows=tuple(rows),
            height_px=430,
        )
    ]


def _matrix(summary: Json, label: str) -> Chart:
    starts = {p["index"]: p["start"][:16].replace("T", " ").removesuffix(" 00:00") for p in summary["periods"]}
    variants, rows = [], []
    for mode, of in summary["modes"].items():
        cells = {(c["trained_until"], c["window"]): c for c in of["matrix"]}
        trained, windows = sorted({b for b, _ in cells}), sorted({e for _, e in cells})
        z = [[short(cells[b, e]["loss"]) if (b, e) in cells else None for e in windows] for b in trained]
        lost = [
            [
                short(cells[b, e]["loss"] - cells[e, e]["loss"]) if (b, e) in cells and (e, e) in cells else None
                for e in windows
            ]
            for b in trained
        ]
        text = [
            [
                f"trained until {starts[b]}<br>evaluated from {starts[e]}<br>age {e - b}" if (b, e) in cells else ""
                for e in windows
            ]
            for b in trained
        ]
        heat = {
            "type": "heatmap", "x": [starts[e] for e in windows], "y": [starts[b] for b in trained], "text": text,
            "hovertemplate": "%{text}<br>%{z:.4f}<extra></extra>", "hoverongaps": False, "xgap": 1, "ygap": 1,
        }  # fmt: skip
        layout = {
            "xaxis": {"title": {"text": "evaluated on the period from"}, "type": "category", "showgrid": False},
            "yaxis": {
                "title": {"text": "trained until"},
                "type": "category",
                "autorange": "reversed",
                "showgrid": False,
            },
        }
        bar = {"thickness": 12, "outlinewidth": 0, "len": 0.9}
        for key, name, values, look in (
            ("loss", label, z, {"colorscale": "--scale"}),
            ("lost", "lost against age 0", lost, {"colorscale": "--diverging", "zmid": 0}),
        ):
            shown = {**heat, "z": values, **look, "colorbar": {**bar, "title": {"text": name, "side": "right"}}}
            variants.append({"key": f"{mode}-{key}", "label": f"{mode}: {name}", "data": [shown], "layout": layout})
        rows += [
            (mode, starts[b], starts[e], e - b, short(c["loss"]), lost[trained.index(b)][windows.index(e)], c["seeds"])
            for (b, e), c in cells.items()
        ]
    return Chart(
        id="matrix",
        label="Loss of models by the end of their training and the window they are evaluated on",
        variants=tuple(variants),
        columns=("mode", "trained until", "evaluated from", "age", "loss", "lost against age 0", "seeds"),
        rows=tuple(rows),
        height_px=560,
    )


CADENCE = (
    "every", "loss_delta", "low", "high", "trainings_per_period", "cost_per_period", "against", "marginal_gain",
    "gain_low", "gain_high", "marginal_cost", "pays_below", "verdict", "measured", "kwh_per_period",
)  # fmt: skip


def _cadence(summary: Json, label: str) -> Chart:
    variants, rows = [], []
    for mode, of in summary["modes"].items():
        table = of["cadence"]
        x, y = [line["every"] for line in table], [short(line["loss_delta"]) for line in table]
        error = {
            "type": "data", "symmetric": False, "width": 5, "thickness": 1.4, "color": "--champion",
            "array": [short(line["high"] - line["loss_delta"]) for line in table],
            "arrayminus": [short(line["loss_delta"] - line["low"]) for line in table],
        }  # fmt: skip
        symbols = ["circle" if line["measured"] else "circle-open" for line in table]
        style = {"color": "--champion", "size": 10, "symbol": symbols}
        marks = {
            "type": "scatter", "mode": "markers", "name": "loss above a model of age 0", "x": x, "y": y,
            "error_y": error,
            "marker": style, "hovertemplate": "%{x}: %{y:+.4f}<extra></extra>", "showlegend": False,
        }  # fmt: skip
        layout = {
            "xaxis": {"type": "category", "title": {"text": "update every"}},
            "yaxis": {"title": {"text": f"mean {escape(label)} lost"}, "zeroline": True},
        }
        variants.append({"key": mode, "label": mode, "data": [marks], "layout": layout})
        rows += [(mode, *(_plain(line.get(name)) for name in CADENCE)) for line in table]
    return Chart(
        id="cadence",
        label="Mean loss of each cadence above that of a model of age 0; hollow ones are extrapolated",
        variants=tuple(variants),
        columns=("mode", *(name.replace("_", " ") for name in CADENCE)),
        rows=tuple(rows),
        height_px=310,
    )


def _plain(value: Any) -> Any:
    return (
        short(value) if isinstance(value, float) else ("yes" if value else "no") if isinstance(value, bool) else value
    )


def _parts(summary: Json, label: str) -> Chart:
    pairs = summary["recency_or_amount"]
    said = {"amount": "more rows, same periods", "recency": "newer rows, as many", "longer": "the longer window in all"}
    rows = tuple(
        (f"{p['shorter']} or {p['longer']}", said[name], *(short(p[name][k]) for k in ("gain", "low", "high")), p["n"])
        for p in pairs
        for name in said
    )
    variants = []
    for p in pairs:
        values = [p[name] for name in said]
        bars = {
            "type": "bar", "x": list(said.values()), "y": [short(v["gain"]) for v in values],
            "marker": {"color": "--champion"}, "hovertemplate": "%{x}: %{y:+.4f}<extra></extra>",
            "error_y": {
                "type": "data", "symmetric": False, "color": "--ink", "thickness": 1.4,
                "array": [short(v["high"] - v["gain"]) for v in values],
                "arrayminus": [short(v["gain"] - v["low"]) for v in values],
            },
        }  # fmt: skip
        name = f"{p['shorter']} or {p['longer']} periods"
        layout = {
            "xaxis": {"type": "category"},
            "yaxis": {"title": {"text": f"{escape(label)} gained"}, "zeroline": True},
        }
        variants.append({"key": f"{p['shorter']}-{p['longer']}", "label": name, "data": [bars], "layout": layout})
    return Chart(
        id="lengths",
        label="What a longer training window gains by its amount of rows, and a newer one by their recency",
        variants=tuple(variants),
        columns=("periods", "what", "gain", "low", "high", "windows"),
        rows=rows,
        height_px=300,
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    macros = _asset("report.html.j2").partition("<!doctype html>")[
        0
    ]  # a section with its chart is that of the loop's page
    return environment.from_string(macros + _asset("freshness.html.j2"))
