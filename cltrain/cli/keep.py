"""Whether the store is what it says: make versions again, clean up, look for damage, read the audit log."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from cltrain.cli.options import ByOption, command, out, print_json
from cltrain.clock import parse_duration
from cltrain.doctor import examine
from cltrain.records import to_json
from cltrain.registry import Registry, Store
from cltrain.registry.audit import entries
from cltrain.registry.audit import verify as verified
from cltrain.reproduce import Hop
from cltrain.reproduce import reproduce as again
from cltrain.retention import Retention, collect

GraceOption = Annotated[str, typer.Option("--grace", help="Files younger than this are left alone, such as 12h.")]


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
        print_json(to_json(done))
    else:
        what = "the same weights, bit for bit" if done.equal else "other weights"
        out.print(f"{registry.model}:{done.version}: {what}, in {done.seconds:.1f} s", highlight=False)
        for name in done.restored:
            out.print(f"put back {name}", highlight=False)
    raise typer.Exit(0 if done.equal else 1)


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
        return print_json(done.to_json())
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
        print_json(found.to_json())
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


@command
def audit(
    store: Store,
    models: list[str] | None,
    as_json: bool,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many, the newest.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain; keep the head that it prints.")] = False,
    head: Annotated[
        str | None, typer.Option("--head", help="The head of an earlier check, which must be there.")
    ] = None,
) -> None:
    """Who did what. With --verify, of the whole store: exit code 0 if the log is as it was written, 1 if not."""
    if not verify and head is None:
        with store.reading() as session:
            found = entries(session, models, last)
        if as_json:
            return print_json({"entries": found})
        for e in found:
            about = f"{e['model']}:{e['subject']}" if e["subject"] else e["model"] or "the store"
            print(f"{e['id']}  {e['at']}  {e['by']}  {e['action']}  {about}  {json.dumps(e['details'])}")
        return
    with store.reading() as session:
        check = verified(session, head)
    if as_json:
        print_json({**vars(check), "intact": check.intact})
    elif check.intact:
        print(f"intact: {check.entries} entries, head {check.head}")
    else:
        print(f"entry {check.broken}: {check.why}; the {check.entries} before it are intact, up to {check.head}")
    raise typer.Exit(0 if check.intact else 1)


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
