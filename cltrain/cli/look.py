"""What there is, and where it came from."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.tree import Tree

from cltrain.cli.options import command, number, out, print_json
from cltrain.records import to_json
from cltrain.registry import Registry, VersionRecord


@command
def versions(
    registry: Registry,
    as_json: bool,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many, the newest.")] = None,
) -> None:
    """All versions, oldest first."""
    found = registry.versions(last)
    if as_json:
        return print_json({"model": registry.model, "versions": [v.summary() for v in found]})
    table = Table(title=registry.model, title_justify="left")
    for column in ("version", "kind", "parent", "trained until", "rows", "verdict", "aliases"):
        table.add_column(column)
    for v in found:
        table.add_row(
            v.version,
            v.kind,
            v.parent or "–",
            f"{v.challenger.cursor.until:%Y-%m-%d %H:%M}",
            str(v.challenger.rows_trained),
            "accepted" if v.verdict.accepted else "rejected",
            ", ".join(v.aliases),
        )
    out.print(table)


@command
def show(registry: Registry, as_json: bool, version: str) -> None:
    """One version, by number or alias: where it came from, what it was weighed on, and how it was judged."""
    found = registry.version(version)
    card = registry.card(found.version)
    moves = [m for m in registry.moves() if found.version in (m["old"], m["new"])]
    if as_json:
        settings = registry.settings(found.version)
        return print_json(found.summary() | {"card": to_json(card), "moves": moves, "settings": settings})
    table = Table(title=f"{registry.model}:{found.version}", title_justify="left", show_header=False)
    for key, value in found.summary().items():
        table.add_row(key, json.dumps(value) if isinstance(value, dict | list) else str(value))
    out.print(table)
    weighed = Table(title="weighed on held-out rows", title_justify="left")
    for column in ("set", "rows", "challenger", "champion", "difference", "interval"):
        weighed.add_column(column)
    for c in card.comparisons:
        metric = "rmse" if "rmse" in c.challenger else "log_loss"
        weighed.add_row(
            c.name,
            str(c.rows),
            number(c.challenger.get(metric)),
            number(c.champion.get(metric) if c.champion else None),
            number(c.difference, "+.4f"),
            f"[{number(c.low, '+.4f')}, {number(c.high, '+.4f')}]" if c.low is not None else "–",
        )
    out.print(weighed)
    for move in moves:
        out.print(
            f"{move['at']}  {move['alias']}: {move['old'] or '–'} → {move['new']} by {move['by']}: {move['reason']}"
        )


@command
def lineage(
    registry: Registry,
    as_json: bool,
    version: Annotated[str | None, typer.Argument(help="Number or alias; all versions without it.")] = None,
) -> None:
    """Who came from whom: the whole tree, or one version's ancestors up to its stateless root."""
    chain = registry.lineage(version) if version else registry.versions()
    if as_json:
        chain = sorted(chain, key=lambda v: v.created_at)
        return print_json({"model": registry.model, "versions": [v.summary() for v in chain]})
    if version:
        for v in chain:
            out.print(_line(v))
        return
    tree = Tree(registry.model)
    nodes: dict[str, Tree] = {}
    for v in chain:
        nodes[v.version] = (nodes[v.parent] if v.parent else tree).add(_line(v))
    out.print(tree)


def _line(v: VersionRecord) -> str:
    aliases = f" ({', '.join(v.aliases)})" if v.aliases else ""
    verdict = "" if v.verdict.accepted else ", rejected"
    until = f"{v.challenger.cursor.until:%Y-%m-%d}"
    rows = f"{v.challenger.rows_trained} rows until {until}, data {v.snapshot_digest[:8]}"
    return f"{v.version}{aliases}  {v.kind}{verdict}, {rows}"
