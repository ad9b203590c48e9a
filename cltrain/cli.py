"""The command line for people: look at versions, and decide what serves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from cltrain.assemble import latest_store
from cltrain.errors import CltrainError, StoreError
from cltrain.records import to_json
from cltrain.registry import Registry, Store, VersionRecord
from cltrain.registry.registry import models

app = typer.Typer(
    help="Versions, lineage and champions of a cltrain store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()

StoreOption = Annotated[str | None, typer.Option("--store", help="Folder or URI of the store; else the one used last.")]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--store-url", envvar="CLTRAIN_STORE_URL", help="SQLAlchemy URL, if the registry is not SQLite there."
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Needed only where a store holds several models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who decides; else the user of this machine.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it stays on record.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one line and exit code 2."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except CltrainError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error

    return app.command()(run)


def open_registry(store: str | None, url: str | None, model: str | None) -> Registry:
    found = Store(root=store or latest_store(), url=url) if url else Store.at(store or latest_store())
    names = models(found)
    if model is None:
        if len(names) != 1:
            raise StoreError(f"the store holds {', '.join(names) or 'no model yet'}: pass --model NAME")
        model = names[0]
    elif model not in names:
        raise StoreError(f"the store has no model {model!r}; it holds {', '.join(names) or 'none yet'}")
    return Registry(found, model)


@command
def versions(
    store: StoreOption = None, store_url: UrlOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """All versions, oldest first."""
    registry = open_registry(store, store_url, model)
    found = registry.versions()
    if as_json:
        return _print_json({"model": registry.model, "versions": [v.summary() for v in found]})
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
def show(
    version: str,
    store: StoreOption = None,
    store_url: UrlOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """One version, by number or alias: where it came from, what it was weighed on, and how it was judged."""
    registry = open_registry(store, store_url, model)
    found = registry.version(version)
    card = registry.card(found.version)
    moves = [m for m in registry.moves() if found.version in (m["old"], m["new"])]
    if as_json:
        settings = registry.settings(found.version)
        return _print_json(found.summary() | {"card": to_json(card), "moves": moves, "settings": settings})
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
            _number(c.challenger.get(metric)),
            _number(c.champion.get(metric) if c.champion else None),
            _number(c.difference, "+.4f"),
            f"[{_number(c.low, '+.4f')}, {_number(c.high, '+.4f')}]" if c.low is not None else "–",
        )
    out.print(weighed)
    for move in moves:
        out.print(
            f"{move['at']}  {move['alias']}: {move['old'] or '–'} → {move['new']} by {move['by']}: {move['reason']}"
        )


@command
def lineage(
    version: Annotated[str | None, typer.Argument(help="Number or alias; all versions without it.")] = None,
    store: StoreOption = None,
    store_url: UrlOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who came from whom: the whole tree, or one version's ancestors up to its stateless root."""
    registry = open_registry(store, store_url, model)
    chain = registry.lineage(version) if version else registry.versions()
    if as_json:
        chain = sorted(chain, key=lambda v: v.created_at)
        return _print_json({"model": registry.model, "versions": [v.summary() for v in chain]})
    if version:
        for v in chain:
            out.print(_line(v))
        return
    tree = Tree(registry.model)
    nodes: dict[str, Tree] = {}
    for v in chain:
        nodes[v.version] = (nodes[v.parent] if v.parent else tree).add(_line(v))
    out.print(tree)


@command
def promote(
    version: str,
    store: StoreOption = None,
    store_url: UrlOption = None,
    model: ModelOption = None,
    by: ByOption = None,
    reason: ReasonOption = "by hand",
    as_json: JsonOption = False,
) -> None:
    """Make a version the champion. What serves follows by itself."""
    registry = open_registry(store, store_url, model)
    before = registry.champion()
    found = registry.version(version)
    epoch = registry.promote(found.version, by=by, reason=reason, expected=before.version if before else None)
    _moved(registry, before, found.version, epoch, as_json)


@command
def rollback(
    store: StoreOption = None,
    store_url: UrlOption = None,
    model: ModelOption = None,
    by: ByOption = None,
    reason: ReasonOption = "by hand",
    as_json: JsonOption = False,
) -> None:
    """Make the previous champion the champion again; the next update continues from it."""
    registry = open_registry(store, store_url, model)
    before = registry.champion()
    version, epoch = registry.rollback(by=by, reason=f"rollback: {reason}")
    _moved(registry, before, version, epoch, as_json)


def _moved(registry: Registry, before: VersionRecord | None, after: str, epoch: int, as_json: bool) -> None:
    old = before.version if before else None
    if as_json:
        return _print_json({"model": registry.model, "champion": after, "previous": old, "epoch": epoch})
    out.print(f"champion of {registry.model}: {old or '–'} → {after} (epoch {epoch})")


def _line(v: VersionRecord) -> str:
    aliases = f" ({', '.join(v.aliases)})" if v.aliases else ""
    verdict = "" if v.verdict.accepted else ", rejected"
    until = f"{v.challenger.cursor.until:%Y-%m-%d}"
    rows = f"{v.challenger.rows_trained} rows until {until}, data {v.snapshot_digest[:8]}"
    return f"{v.version}{aliases}  {v.kind}{verdict}, {rows}"


def _number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def main() -> None:
    app()
