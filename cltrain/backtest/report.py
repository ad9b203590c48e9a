"""`report.html` of a backtest: quality against cost, the choice, and every number, on one page."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from cltrain.clock import from_us
from cltrain.records import Json
from cltrain.tracking.base import Table
from cltrain.tracking.charts import Chart, day, short
from cltrain.tracking.headlines import count, duration, figure
from cltrain.tracking.report import script_json

COLUMNS = (
    "name", "status", "front", "metric", "difference", "low", "high", "worst", "bad_time", "retention", "rows",
    "rows_replayed", "updates", "rejected", "labels", "device_seconds", "watt_hours", "grams_co2",
)  # fmt: skip
LINES = 8  # strategies in the chart over time at most


def render(result: Mapping[str, Any], lines: Sequence[Json], written: datetime | None = None) -> str:
    """The page. `result` is that of `Judgement.judge`, with the places; `lines` are those of the trials."""
    charts = _charts(result, lines)
    chosen = next(row for row in result["table"] if row["name"] == result["chosen"])
    return _template().render(
        result=result,
        said=_sentence(result, chosen),
        chosen=chosen,
        tiles=_tiles(result, chosen),
        charts=dict.fromkeys(("pareto", "time", "iteration")) | {chart.id: chart for chart in charts},
        rows=[_shown(row) for row in result["table"]],
        against=[
            {"name": name} | {key: _number(value) for key, value in found.items()}
            for name, found in result["confirmation"]["against"].items()
        ],
        changes={key: str(value) for key, value in chosen["changes"].items()},
        luck=f"{result['luck']:.3g}",
        written=(written or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        css=_asset("report.css"),
        js=_asset("report.js"),
        plotly=Markup(resources.files("plotly").joinpath("package_data/plotly.min.js").read_text("utf-8")),
        figures=script_json([
            {
                "id": c.id, "variants": c.variants, "columns": c.columns, "rows": c.rows,
                "height": c.height_px, "scroll": c.scroll_px, "shared": c.shared,
            }
            for c in charts
        ]),
    )  # fmt: skip


def tables(result: Mapping[str, Any], lines: Sequence[Json]) -> dict[str, Table]:
    """Columns and rows of every chart, for trackers that have tables."""
    return {f"backtest/{chart.id}": (chart.columns, chart.rows) for chart in _charts(result, lines)}


def _charts(result: Mapping[str, Any], lines: Sequence[Json]) -> list[Chart]:
    found = (_pareto(result), _over_time(result, lines), _iterations(result))
    return [chart for chart in found if chart is not None]


def _sentence(result: Mapping[str, Any], chosen: Json) -> str:
    rule = (
        "the cheapest that is no worse than the reference" if result["budget"] is None else "the best within the budget"
    )
    best = f"Of {result['tried']} strategies, {result['chosen']} is {rule}"
    verdict = result["confirmation"]["verdict"]
    cost = f"{figure(chosen['metric'])} for {count(chosen['rows'])} row visits"
    return f"{best}: {cost}. {verdict[:1].upper()}{verdict[1:]}."


def _tiles(result: Mapping[str, Any], chosen: Json) -> list[Json]:
    found = result["confirmation"]["against"].get(result["baseline"]) or {}
    verdict = {True: ("holds", "good"), False: ("does not hold", "bad"), None: ("cannot tell", "quiet")}
    pill, tone = verdict[result["confirmation"]["holds"]]
    ratio = found.get("rows_ratio")
    power = f"about {chosen['watt_hours']:.3g} Wh, {chosen['grams_co2']:.3g} g CO₂"
    fewer = f"{ratio:.1f}× fewer" if ratio else "–"
    name, front = result["chosen"], f"{len(result['front'])} on the front"
    return [
        {"name": "Chosen", "value": name, "pill": pill, "tone": tone, "more": front},
        {"name": f"Row visits against {result['baseline']}", "value": fewer, "more": "over all of history"},
        {"name": "Updates", "value": count(chosen["updates"]), "more": f"{count(chosen['rejected'])} rejected"},
        {"name": "Training", "value": duration(chosen["device_seconds"]), "more": power},
    ]


def _pareto(result: Mapping[str, Any]) -> Chart | None:
    rows = [row for row in result["table"] if row["status"] == "ranked"]
    if not rows:
        return None
    costs = (
        ("rows", "row visits", "log"),
        ("updates", "updates", "linear"),
        ("device_seconds", "device-seconds of training", "log"),
    )
    return Chart(
        id="pareto",
        label="Metric of each strategy against its cost, coloured by retention; a line joins those that none beats",
        variants=tuple(_against(result, rows, *cost) for cost in costs),
        columns=COLUMNS,
        rows=tuple(tuple(_cell(row[key]) for key in COLUMNS) for row in result["table"]),
        height_px=430,
    )


def _against(result: Mapping[str, Any], rows: Sequence[Json], key: str, label: str, kind: str) -> Json:
    best, edge = float("inf"), []
    for row in sorted(rows, key=lambda row: (row[key], row["metric"])):
        if row["metric"] < best:
            best = row["metric"]
            edge.append(row)
    retention = [short(row["retention"]) for row in rows]
    line = {
        "type": "scatter", "mode": "lines", "name": "nothing cheaper is better", "x": [r[key] for r in edge],
        "y": [short(r["metric"]) for r in edge], "hoverinfo": "skip",
        "line": {"color": "--edge", "width": 1.5, "dash": "dot", "shape": "hv"},
    }  # fmt: skip
    points = {
        "type": "scatter", "mode": "markers", "name": "strategy, coloured by retention", "x": [r[key] for r in rows],
        "y": [short(r["metric"]) for r in rows], "text": [_hover(r) for r in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": 11, "color": retention, "colorscale": "--scale", "showscale": True,
            "colorbar": {"title": {"text": "retention"}, "thickness": 12},
            "line": {"color": "--muted", "width": 1},
        },
    }  # fmt: skip
    looks = {result["baseline"]: ("--static", "square-open"), "current": ("--champion", "diamond-open")}
    looks[result["chosen"]] = ("--now", "star-open")
    data = [line, points]
    for row in rows:
        if row["name"] in looks:
            colour, symbol = looks[row["name"]]
            data.append({
                "type": "scatter", "mode": "markers", "hoverinfo": "skip", "x": [row[key]], "y": [short(row["metric"])],
                "name": f"chosen: {row['name']}" if row["name"] == result["chosen"] else row["name"],
                "marker": {"color": colour, "symbol": symbol, "size": 19, "line": {"color": colour, "width": 2.4}},
            })  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": label}, "type": kind},
        "yaxis": {"title": {"text": f"{escape(result['metric'])} · lower is better"}},
        "hovermode": "closest",
    }
    return {"key": key, "label": label, "data": data, "layout": layout}


def _over_time(result: Mapping[str, Any], lines: Sequence[Json]) -> Chart | None:
    history = result["history"]
    wanted = list(dict.fromkeys([result["chosen"], "current", result["baseline"], *result["front"]]))[:LINES]
    named = {line["name"]: line for line in lines if line["periods"]}
    shown = [named[name] for name in wanted if name in named]
    ends = [day(from_us(history["begin_us"] + (i + 1) * history["period_us"])) for i in range(history["periods"])]
    root = np.sqrt if result["metric"] == "rmse" else np.asarray
    series = {}
    for line in shown:
        rows, losses = (np.array(line["periods"][key], float) for key in ("rows", "losses"))
        means = root(np.divide(losses, rows, out=np.full_like(losses, np.nan), where=rows > 0))
        series[line["name"]] = [short(v) for v in means.tolist()]
    styles = (
        {"color": "--now", "width": 2.6},
        {"color": "--champion", "width": 2},
        {"color": "--static", "width": 1.8, "dash": "dot"},
    )
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": ends[: len(values)], "y": values,
            "line": styles[i] if i < len(styles) else {"color": "--edge", "width": 1.2},
            "hovertemplate": f"%{{y:.4f}}<extra>{escape(name)}</extra>",
        }
        for i, (name, values) in enumerate(series.items())
    ]  # fmt: skip
    split = day(from_us(history["begin_us"] + history["ranked"] * history["period_us"]))
    layout = {
        "hovermode": "x unified",
        "xaxis": {"type": "date"},
        "yaxis": {"title": {"text": f"{escape(result['metric'])} · lower is better"}},
        "shapes": [{
            "type": "line", "x0": split, "x1": split, "yref": "paper", "y0": 0, "y1": 1,
            "line": {"color": "--muted", "dash": "dot"},
        }],
    }  # fmt: skip
    return Chart(
        id="time",
        label="Metric of each period; right of the line is what nothing was chosen on",
        variants=({"key": "metric", "label": result["metric"], "data": data, "layout": layout},),
        columns=("period end", *series),
        rows=tuple(
            (end, *(values[i] if i < len(values) else None for values in series.values())) for i, end in enumerate(ends)
        ),
        height_px=360,
    )


def _iterations(result: Mapping[str, Any]) -> Chart | None:
    tried = result["iteration"]["iterations"]
    if not tried:
        return None
    data: list[Json] = []
    for kind, colour, symbol in (("data", "--champion", "circle"), ("model", "--rejected", "diamond")):
        own = [i for i in tried if i["kind"] == kind]
        bars: Json = {
            "array": [short(i["high"] - i["gain"]) for i in own],
            "arrayminus": [short(i["gain"] - i["low"]) for i in own],
        }
        data.append({
            "type": "scatter", "mode": "markers", "name": {"data": "another cadence", "model": "another model"}[kind],
            "x": [short(i["extra_device_seconds"]) for i in own], "y": [short(i["gain"]) for i in own],
            "text": [escape(i["name"]) for i in own],
            "hovertemplate": "%{text}<br>%{y:.4f} for %{x:.3g} s<extra></extra>",
            "marker": {"color": colour, "symbol": symbol, "size": 11, "line": {"color": colour, "width": 1}},
            "error_y": {"type": "data", "symmetric": False, "color": colour, "thickness": 1.3, "width": 0, **bars},
        })  # fmt: skip
    columns = ("name", "kind", "gain", "low", "high", "extra_device_seconds", "gain_per_device_hour")
    return Chart(
        id="iteration",
        label="Gain of another cadence and of another model against what it costs more",
        variants=({
            "key": "gain", "label": "gain", "data": data,
            "layout": {"xaxis": {"title": {"text": "device-seconds more than the present settings"}, "zeroline": True},
                       "yaxis": {"title": {"text": "gain in mean loss · higher is better"}, "zeroline": True}},
        },),
        columns=columns,
        rows=tuple(tuple(_cell(i[key]) for key in columns) for i in tried),
    )  # fmt: skip


def _hover(row: Json) -> str:
    changes = [f"{escape(key)} = {escape(str(value))}" for key, value in list(row["changes"].items())[:10]]
    interval = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] against current"
    about = f"{row['metric']:.4f}, {count(row['rows'])} row visits, {row['updates']} updates"
    return "<br>".join([f"<b>{escape(row['name'])}</b>", about, interval, *changes])


def _shown(row: Json) -> Json:
    interval = "–" if row["low"] is None else f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
    return {key: _number(value) for key, value in row.items() if not isinstance(value, dict)} | {
        "interval": interval,
        "bad_time": "–" if row["bad_time"] is None else f"{row['bad_time']:.0%}",
        "device_seconds": "–" if row["device_seconds"] is None else duration(row["device_seconds"]),
        "changes": ", ".join(f"{key}={value}" for key, value in row["changes"].items()) or "the present settings",
    }


def _number(value: Any) -> Any:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return count(value) if isinstance(value, int) else figure(value)


def _cell(value: Any) -> Any:
    return short(value) if isinstance(value, float) else value


def _asset(name: str) -> Markup:
    return Markup(resources.files("cltrain.tracking").joinpath(name).read_text("utf-8"))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("backtest.html.j2"))
