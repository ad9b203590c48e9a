"""Charts of a report card, as `cltrain.tracking.charts` makes those of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cltrain.records import Json, ReportCard
from cltrain.tracking.charts import CHAMPION, STATIC, Chart, short
from cltrain.tracking.history import measured, number
from cltrain.tracking.review import Change, changes, label_of

LONGEST = 26  # characters of a name beside an axis
LOOKS = {
    "better": ("better", "--good", "circle"),
    "worse": ("worse", "--rejected", "diamond"),
    "unsure": ("not certain", "--static", "circle-open"),
    "same": ("the same", "--static", "circle-open"),
}
ROW_PX = 26
FEATURES_CAP = 20


def drawn(card: ReportCard) -> list[Chart]:
    """Those that have something to show."""
    made = (
        differences(changes(card)),
        reliability(card.reliability),
        windows(card.transfer),
        importance(card.importance),
    )
    return [chart for chart in made if chart.rows]


def differences(found: Sequence[Change]) -> Chart:
    """Challenger minus champion with its interval, on the window, the past and each slice; a variant for a metric."""
    by_metric: dict[str, list[Change]] = {}
    for change in found:
        by_metric.setdefault(change.metric, []).append(change)
    most = max((len(group) for group in by_metric.values()), default=0)
    return Chart(
        id="differences",
        label="Challenger minus champion with interval, on the new window, the past and each slice",
        variants=tuple(_forest(name, group) for name, group in by_metric.items()),
        columns=("on", "metric", "rows", "champion", "challenger", "difference", "low", "high", "verdict"),
        rows=tuple(
            (c.where, c.label, c.rows, *map(short, (c.champion, c.challenger, c.difference, c.low, c.high)),
             LOOKS[c.direction][0])
            for c in found
        ),
        height_px=96 + ROW_PX * max(most, 2),
    )  # fmt: skip


def _forest(metric: str, found: Sequence[Change]) -> Json:
    data = []
    for direction, (name, colour, symbol) in LOOKS.items():
        some = [(y, c) for y, c in enumerate(found) if c.direction == direction]
        if some:
            style = {"color": colour, "symbol": symbol, "size": 10, "line": {"color": colour, "width": 1.5}}
            data.append(_points(name, style, [(short(c.difference), y) for y, c in some]))
            data[-1] |= {
                "error_x": _error([c for _, c in some], colour),
                "text": [_told(c) for _, c in some],
                "hovertemplate": "%{text}<extra></extra>",
            }
    higher = any((c.difference > 0) == (c.direction == "better") for c in found if c.direction in ("better", "worse"))
    known = any(c.direction in ("better", "worse") for c in found)
    side = f"{'above' if higher else 'below'} 0 is better" if known else "challenger − champion"
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": side}, "zeroline": True},
        "yaxis": {
            "tickvals": list(range(len(found))), "ticktext": [escape(cut(c.where)) for c in found],
            "range": [len(found) - 0.4, -0.6], "zeroline": False,
        },
    }  # fmt: skip
    return {"key": metric, "label": label_of(metric), "data": data, "layout": layout}


def reliability(curves: Mapping[str, Sequence[Json]]) -> Chart:
    """Share of positives that was observed against the probability that was predicted."""
    data, rows = [], []
    for who, style in (("champion", STATIC), ("challenger", CHAMPION)):
        curve = curves.get(who) or ()
        if curve:
            x, y = ([short(point[key]) for point in curve] for key in ("predicted", "observed"))
            data.append({
                "type": "scatter", "mode": "lines+markers", "name": who, "x": x, "y": y, "line": style,
                "marker": {"color": style["color"], "size": [_size(point["rows"]) for point in curve]},
                "text": [f"{who}: predicted {a:.3f}, observed {b:.3f}, {p['rows']:.0f} rows"
                         for a, b, p in zip(x, y, curve, strict=True)],
                "hovertemplate": "%{text}<extra></extra>",
            })  # fmt: skip
            rows += [(who, a, b, short(p["rows"])) for a, b, p in zip(x, y, curve, strict=True)]
    ideal = {
        "type": "scatter", "mode": "lines", "name": "perfect", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
        "line": {"color": "--edge", "width": 1.2, "dash": "dot"},
    }  # fmt: skip
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "predicted probability"}, "range": [-0.02, 1.02]},
        "yaxis": {"title": {"text": "observed share of positives"}, "range": [-0.04, 1.04]},
    }
    return Chart(
        id="reliability",
        label="Calibration: observed share of positives against predicted probability",
        variants=({"key": "all", "label": "all", "data": [ideal, *data], "layout": layout},),
        columns=("version", "predicted", "observed", "rows"),
        rows=tuple(rows),
        height_px=360,
    )


def windows(cells: Sequence[Json]) -> Chart:
    """The row of the transfer matrix: loss on each window, of both versions and of the best constant answer."""
    known = sorted(measured(cells), key=lambda c: c["window"])
    x = [c["window"] for c in known]
    data = []
    for name, key, style in (
        ("best constant answer", "constant", {"color": "--edge", "width": 1.2, "dash": "dot"}),
        ("champion", "champion", STATIC),
        ("challenger", "loss", CHAMPION),
    ):
        y = [short(c.get(key)) for c in known]
        if any(v is not None for v in y):
            data.append({
                "type": "scatter", "mode": "lines+markers" if key != "constant" else "lines", "name": name, "x": x,
                "y": y, "line": style, "marker": {"color": style["color"], "size": 6},
                "hovertemplate": "%{y:.4f}<extra>" + name + "</extra>",
            })  # fmt: skip
    layout = {
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "held-out rows of window"}, "zeroline": False, **whole(x)},
        "yaxis": {"title": {"text": "mean loss"}},
    }
    return Chart(
        id="transfer",
        label="Loss on held-out rows of each window",
        variants=({"key": "all", "label": "all", "data": data, "layout": layout},),
        columns=("window", "rows", "challenger", "champion", "best constant answer"),
        rows=tuple(
            (c["window"], c["rows"], *(short(c.get(k)) for k in ("loss", "champion", "constant"))) for c in known
        ),
        height_px=300,
    )


def importance(found: Sequence[Json]) -> Chart:
    """By how much the mean loss rises when a feature is shuffled, with twice its standard error."""
    shown = [f for f in found if number(f.get("rise")) is not None][:FEATURES_CAP]
    style = {"color": "--champion", "symbol": "circle", "size": 9}
    points = _points("rise", style, [(short(f["rise"]), y) for y, f in enumerate(shown)])
    data = {
        **points, "showlegend": False, "text": [escape(str(f["feature"])) for f in shown],
        "hovertemplate": "%{text}: %{x:+.4f}<extra></extra>",
        "error_x": {"type": "data", "array": [short(2 * (f.get("error") or 0)) for f in shown], "width": 0,
                    "thickness": 1.3, "color": "--champion"},
    }  # fmt: skip
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "rise of the mean loss"}, "zeroline": True},
        "yaxis": {
            "tickvals": list(range(len(shown))), "ticktext": [escape(cut(str(f["feature"]))) for f in shown],
            "range": [len(shown) - 0.4, -0.6], "zeroline": False,
        },
    }  # fmt: skip
    return Chart(
        id="importance",
        label="Permutation importance of the features",
        variants=({"key": "all", "label": "all", "data": [data], "layout": layout},),
        columns=("feature", "rise of the loss", "standard error"),
        rows=tuple((str(f["feature"]), short(f["rise"]), short(f.get("error"))) for f in shown),
        height_px=96 + ROW_PX * max(len(shown), 2),
        note=f"{len(shown)} of {len(found)} features, the most important ones" if len(shown) < len(found) else "",
    )


def cut(text: str) -> str:
    """A name that fits beside an axis.

    >>> cut("worse than the champion: x < 0.5 and shop == 'a'")
    'worse than the champion:…'
    """
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def _points(name: str, style: Json, points: Sequence[tuple[float | None, int]]) -> Json:
    x, y = ([p[i] for p in points] for i in (0, 1))
    return {"type": "scatter", "mode": "markers", "name": name, "marker": style, "x": x, "y": y}


def _error(found: Sequence[Change], colour: str) -> Json:
    return {
        "type": "data", "symmetric": False, "width": 0, "thickness": 1.5, "color": colour,
        "array": [short(c.high - c.difference) if c.high is not None else 0 for c in found],
        "arrayminus": [short(c.difference - c.low) if c.low is not None else 0 for c in found],
    }  # fmt: skip


def _told(c: Change) -> str:
    bounds = "" if c.low is None or c.high is None else f" [{c.low:+.4g}, {c.high:+.4g}]"
    return f"<b>{escape(c.where)}</b><br>{escape(c.label)} {c.difference:+.4g}{bounds}<br>{c.rows:,} rows"


def _size(rows: Any) -> float:
    return max(5.0, min(13.0, 4 + float(rows) ** 0.25))


def whole(x: Sequence[int]) -> Json:
    """Few windows have a tick each."""
    return {"dtick": 1} if len(x) <= 20 else {}
