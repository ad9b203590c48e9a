"""The transfer matrix as a heat map: what versions know about windows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from cltrain.tracking.charts import FATES, Chart, Marks, short
from cltrain.tracking.history import Entry, losses, number

MATRIX_CAP = 60


def matrix(found: Sequence[Entry]) -> Chart:
    """Loss of versions on held-out rows of windows. Too many versions are thinned out evenly, too many windows are put
    into groups, whose cell is the mean over their rows."""
    measured = [e for e in found if losses(e)]
    shown = thin(measured, MATRIX_CAP)
    windows = sorted({k for e in shown for k in losses(e)})
    groups = grouped(windows, MATRIX_CAP)
    cells = [[_cell(e, group) for group in groups] for e in shown]
    names = [str(g[0]) if len(g) == 1 else f"{g[0]}–{g[-1]}" for g in groups]
    own = [next((i for i, g in enumerate(groups) if g[0] <= e.round.index <= g[-1]), None) for e in shown]
    first = [
        next((row[i] for e, row in zip(shown, cells, strict=True) if e.fate != "rejected" and row[i] is not None), None)
        for i in range(len(groups))
    ]
    change = [
        [None if c is None or f is None else short(c - f) for c, f in zip(row, first, strict=True)] for row in cells
    ]
    hover = [
        [_cell_hover(e, names[i], own[row] == i, cells[row][i], change[row][i]) for i in range(len(groups))]
        for row, e in enumerate(shown)
    ]
    rows, columns = list(range(len(shown))), list(range(len(groups)))
    heat = {
        "type": "heatmap", "x": columns, "y": rows, "text": hover, "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False, "xgap": 1 if len(groups) < 40 else 0, "ygap": 1 if len(shown) < 40 else 0,
    }  # fmt: skip
    bar = {"thickness": 12, "outlinewidth": 0, "len": 0.9}
    looks = (
        ("loss", "loss", "loss", {"z": cells, "colorscale": "--scale"}),
        ("change", "change since learned", "loss − loss when first learned",
         {"z": change, "colorscale": "--diverging", "zmid": 0}),
    )  # fmt: skip
    diagonal = Marks(
        name="window it learned last",
        style={
            "symbol": "square-open",
            "size": max(5, min(13, 420 // max(len(groups), 1))),
            "color": "--ink",
            "line": {"width": 1.4},
        },
        x=[c for c in own if c is not None],
        y=[row for row, c in enumerate(own) if c is not None],
    )
    step_x, step_y = max(1, -(-len(groups) // 20)), max(1, -(-len(shown) // 26))
    plain = {"showgrid": False, "zeroline": False}
    layout = {
        "xaxis": {
            "title": {"text": "held-out rows of window"}, "range": [-0.5, len(groups) - 0.5],
            "tickvals": columns[::step_x], "ticktext": names[::step_x], **plain,
        },
        "yaxis": {
            "title": {"text": "version"}, "range": [len(shown) - 0.5, -0.5],
            "tickvals": rows[::step_y], "ticktext": [escape(e.version) for e in shown][::step_y], **plain,
        },
    }  # fmt: skip
    notes = []
    if len(shown) < len(measured):
        notes.append(f"{len(shown)} of {len(measured)} versions, evenly spread")
    if len(groups) < len(windows):
        notes.append(f"{len(windows)} windows in {len(groups)} groups; a cell is the mean over the rows of its group")
    return Chart(
        id="transfer",
        label="Transfer matrix: loss of each version on held-out rows of each window",
        variants=tuple(
            {"key": key, "label": label, "layout": layout,
             "data": [{**heat, **look, "colorbar": {**bar, "title": {"text": title, "side": "right"}}}]}
            for key, label, title, look in looks
        ),
        shared=(diagonal.trace(hoverinfo="skip", hovertemplate=None),),
        columns=("version", *(f"window {name}" for name in names)),
        rows=tuple((e.version, *cells[i]) for i, e in enumerate(shown)),
        height_px=max(260, min(760, 130 + 15 * len(shown))),
        scroll_px=160 + 11 * len(groups),
        note="; ".join(notes),
    )  # fmt: skip


def thin(items: Sequence[Any], cap: int) -> list[Any]:
    """At most `cap` of them, evenly spread, with the first and the last.

    >>> thin(range(9), 3)
    [0, 4, 8]
    """
    if len(items) <= cap:
        return list(items)
    return [items[round(i * (len(items) - 1) / (cap - 1))] for i in range(cap)]


def grouped(items: Sequence[int], cap: int) -> list[list[int]]:
    """At most `cap` groups of neighbours, as equal as can be.

    >>> grouped([0, 1, 2, 3, 4], 3)
    [[0], [1, 2], [3, 4]]
    """
    count = min(cap, len(items))
    edges = [i * len(items) // count for i in range(count + 1)] if count else []
    return [list(items[a:b]) for a, b in pairwise(edges)]


def _cell_hover(e: Entry, window: str, own: bool, loss: float | None, change: float | None) -> str:
    if loss is None:
        return ""
    text = f"<b>{escape(e.version)}</b> ({FATES[e.fate]}, round {e.round.index})<br>window {window}"
    text += f"{' · the one it learned last' if own else ''}<br>loss {loss:.4f}"
    return text + (f", {change:+.4f} since first learned" if change is not None else "")


def _cell(e: Entry, group: Sequence[int]) -> float | None:
    inside = [
        c
        for c in e.data.get("transfer") or ()
        if group[0] <= c["window"] <= group[-1] and number(c.get("loss")) is not None
    ]
    rows = sum(c.get("rows") or 1 for c in inside)
    return short(sum(c["loss"] * (c.get("rows") or 1) for c in inside) / rows) if inside else None
