"""The command line for people: look at versions, and decide what serves."""

from __future__ import annotations

import inspect
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
from cltrain.clock import parse_duration
from cltrain.doctor import examine
from cltrain.errors import CltrainError, StoreError
from cltrain.records import to_json
from cltrain.registry import Registry, Store, VersionRecord
from cltrain.registry.approvals import Approval
from cltrain.registry.registry import models as names_of_models
from cltrain.reproduce import Hop
from cltrain.reproduce import reproduce as again
from cltrain.retention import Retention, collect

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
CommentOption = Annotated[str, typer.Option("--comment", help="Why; it stays on record.")]
GraceOption = Annotated[str, typer.Option("--grace", help="Files younger than this are left alone, such as 12h.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it stays on record.")]


def _shared(
    store: StoreOption = None, store_url: UrlOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """The options that every command has after its own."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one line and exit code 2. `function` takes `registry`, of the model that the options
    mean, or `store` and `models`, those that `--model` names or all; and `as_json`. The rest are its own arguments."""
    own = inspect.signature(function, eval_str=True).parameters
    given = ("registry", "store", "models", "as_json")
    parameters = [p for name, p in own.items() if name not in given]
    parameters += inspect.signature(_shared, eval_str=True).parameters.values()

    @wraps(function)
    def run(store: str | None, store_url: str | None, model: str | None, as_json: bool, **words: Any) -> None:
        try:
            found = open_store(store, store_url)
            if "registry" in own:
                function(registry=Registry(found, _one_model(found, model)), as_json=as_json, **words)
            else:
                only = None if model is None else [_one_model(found, model)]
                function(store=found, models=only, as_json=as_json, **words)
        except CltrainError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error

    run.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return app.command()(run)


def open_store(store: str | None, url: str | None) -> Store:
    return Store(root=store or latest_store(), url=url) if url else Store.at(store or latest_store())


def _one_model(store: Store, model: str | None) -> str:
    names = names_of_models(store)
    if model is None:
        if len(names) != 1:
            raise StoreError(f"the store holds {', '.join(names) or 'no model yet'}: pass --model NAME")
        return names[0]
    if model not in names:
        raise StoreError(f"the store has no model {model!r}; it holds {', '.join(names) or 'none yet'}")
    return model


@command
def versions(registry: Registry, as_json: bool) -> None:
    """All versions, oldest first."""
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
def show(registry: Registry, as_json: bool, version: str) -> None:
    """One version, by number or alias: where it came from, what it was weighed on, and how it was judged."""
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
    registry: Registry,
    as_json: bool,
    version: Annotated[str | None, typer.Argument(help="Number or alias; all versions without it.")] = None,
) -> None:
    """Who came from whom: the whole tree, or one version's ancestors up to its stateless root."""
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
    registry: Registry,
    as_json: bool,
    version: str,
    by: ByOption = None,
    reason: ReasonOption = "by hand",
) -> None:
    """Make a version the champion. What serves follows by itself."""
    before = registry.champion()
    found = registry.version(version)
    epoch = registry.promote(found.version, by=by, reason=reason, expected=before.version if before else None)
    _moved(registry, before, found.version, epoch, as_json)


@command
def rollback(
    registry: Registry,
    as_json: bool,
    by: ByOption = None,
    reason: ReasonOption = "by hand",
) -> None:
    """Make the previous champion the champion again; the next update continues from it."""
    before = registry.champion()
    version, epoch = registry.rollback(by=by, reason=f"rollback: {reason}")
    _moved(registry, before, version, epoch, as_json)


@command
def reproduce(
    registry: Registry,
    as_json: bool,
    version: str,
    from_parent: Annotated[bool, typer.Option("--from-parent", help="Only the last update, from its parent.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="A group of so many, for what a group had trained.")
    ] = None,
    data_path: Annotated[str | None, typer.Option("--data-path", help="Where the data is, if it was moved.")] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Put back what is missing or altered, if the bits are the same.")
    ] = False,
) -> None:
    """Train a version again from what is on record, and compare the bits: exit code 0 if they are the same, 1 if not, 2
    if it cannot be done. Changes no version and no alias."""
    done = again(
        registry,
        version,
        from_parent=from_parent,
        workers=workers,
        data_path=data_path,
        restore=restore,
        told=lambda hop: None if as_json else _print_hop(hop),
    )
    if as_json:
        _print_json(to_json(done))
    else:
        what = "the same weights, bit for bit" if done.equal else "other weights"
        out.print(f"{registry.model}:{done.version}: {what}, in {done.seconds:.1f} s", highlight=False)
        for name in done.restored:
            out.print(f"put back {name}", highlight=False)
    raise typer.Exit(0 if done.equal else 1)


@command
def approve(
    registry: Registry,
    as_json: bool,
    version: str,
    by: ByOption = None,
    comment: CommentOption = "",
    role: Annotated[str | None, typer.Option("--role", help="The role in which you sign.")] = None,
    override: Annotated[bool, typer.Option("--override", help="Although the gate rejected it; on record.")] = False,
) -> None:
    """Let a version through that waits for people."""
    _answered(registry, registry.approve(version, by, comment, role=role, override=override), as_json)


@command
def reject(registry: Registry, as_json: bool, version: str, by: ByOption = None, comment: CommentOption = "") -> None:
    """Do not let a version through."""
    _answered(registry, registry.reject(version, by, comment), as_json)


@command
def gc(
    store: Store,
    models: list[str] | None,
    as_json: bool,
    keep_last: Annotated[int, typer.Option("--keep-last", help="Newest versions of each model that stay.")] = 10,
    grace: GraceOption = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    by: ByOption = None,
) -> None:
    """Delete files that nothing needs any more. Versions stay on record; champions of all times, aliases, parents and
    the newest versions stay whole."""
    retention = Retention(keep_last=keep_last, grace_s=parse_duration(grace).total_seconds())
    done = collect(store, retention, models=models, dry_run=dry_run, by=by)
    if as_json:
        return _print_json(done.to_json())
    table = Table(title="would go" if dry_run else "gone", title_justify="left")
    for column in ("what", "files", "MB"):
        table.add_column(column)
    for why in dict.fromkeys(blob.why for blob in done.blobs):
        sizes = [blob.bytes for blob in done.blobs if blob.why == why]
        table.add_row(why, str(len(sizes)), f"{sum(sizes) / 1e6:.1f}")
    table.add_row("all", str(len(done.blobs)), f"{done.bytes / 1e6:.1f}")
    out.print(table)
    out.print(f"versions without files from now on: {', '.join(done.versions) or 'none'}; kept: {len(done.kept)}")


@command
def doctor(
    store: Store,
    models: list[str] | None,
    as_json: bool,
    grace: GraceOption = "1d",
    repair: Annotated[bool, typer.Option("--repair", help="Set aside or delete what nothing needs.")] = False,
) -> None:
    """Read everything that the registry names and compare digests: exit code 0 if the store is sound, 1 if not."""
    found = examine(store, models=models, grace_s=parse_duration(grace).total_seconds(), repair=repair)
    if as_json:
        _print_json(found.to_json())
    else:
        for problem in found.problems:
            done = f"[{problem.repaired}]" if problem.repaired else f"→ {problem.advice}"
            print(f"{problem.kind}: {problem.subject}: {problem.message} {done}")
        for note in found.notes:
            print(f"note: {note}")
        unsolved = sum(problem.repaired is None for problem in found.problems)
        print(
            f"{found.versions} version(s), {found.blobs} file(s), {found.bytes / 1e6:.1f} MB: "
            + (f"{unsolved} problem(s)" if unsolved else "sound")
        )
    raise typer.Exit(0 if found.healthy else 1)


def _print_hop(hop: Hop) -> None:
    if hop.equal:
        said = "equal"
    elif hop.largest_difference is None:
        said = "DIFFERS"
    else:
        said = f"DIFFERS, a weight by up to {hop.largest_difference:.2g}"
    out.print(f"{hop.version}  {hop.kind}  {hop.rebuilt[:12]}  {said}  {hop.seconds:.1f} s", highlight=False)
    for name, (then, now) in hop.differs.items():
        print(f"    {name}: {json.dumps(then)} at the time, {json.dumps(now)} now")


def _answered(registry: Registry, approval: Approval, as_json: bool) -> None:
    if as_json:
        return _print_json({"model": registry.model} | to_json(approval))
    missing = f", still to come: {approval.missing}" if approval.missing else ""
    out.print(f"{registry.model}:{approval.version} is {approval.state}{missing}", highlight=False)


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
