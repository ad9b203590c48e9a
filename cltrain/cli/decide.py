"""What people decide: who serves, who may, and what is said of a version."""

from __future__ import annotations

from typing import Annotated

import typer

from cltrain.cli.options import ByOption, CommentOption, ReasonOption, champion_moved, command, out, print_json
from cltrain.errors import ConfigError, ConflictError
from cltrain.records import Json, to_json
from cltrain.registry import Approval, Registry
from cltrain.registry.permissions import Permission, is_subject


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
    champion_moved(registry, before, found.version, epoch, as_json)


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
    champion_moved(registry, before, version, epoch, as_json)


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
    """Let a version through that waits for people. With the last signature it becomes champion, at once where the loop
    swaps, and otherwise as the loop rolls it out. Or say yes to `retrain/ROUND` or `rollback/ID`: see `waiting`."""
    if is_subject(version):
        if role or override:
            raise ConfigError(f"{version} takes one yes, of anybody: leave out --role and --override")
        return _permitted(registry.permit(version, by, comment), as_json)
    approval = registry.approve(version, by, comment, role=role, override=override)
    said = _promote_approved(registry, approval, by, comment)
    _answered(registry, approval, as_json, said)


@command
def reject(registry: Registry, as_json: bool, version: str, by: ByOption = None, comment: CommentOption = "") -> None:
    """Do not let a version through; or say no to `retrain/ROUND` or `rollback/ID`: see `waiting`."""
    if is_subject(version):
        return _permitted(registry.refuse(version, by, comment), as_json)
    _answered(registry, registry.reject(version, by, comment), as_json)


@command
def waiting(registry: Registry, as_json: bool) -> None:
    """What awaits an answer: versions, updates that a trigger asks for, and versions to be withdrawn."""
    registry.expire()
    registry.settle()
    found = [{"subject": a.version, "why": a.missing, **_times(a)} for a in registry.approvals("awaiting")]
    found += [{"subject": p.subject, "why": p.why, **_times(p)} for p in registry.permissions("awaiting")]
    if as_json:
        return print_json({"model": registry.model, "waiting": found})
    for one in found:
        until = f", until {one['expires_at']}" if one["expires_at"] else ""
        out.print(f"{one['subject']}: {one['why']}{until}", highlight=False, markup=False)
    if not found:
        out.print("nothing awaits an answer")


@command
def tag(
    registry: Registry,
    as_json: bool,
    version: str,
    key: str,
    value: Annotated[str, typer.Argument(help="What the tag says, if anything.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away.")] = False,
    by: ByOption = None,
) -> None:
    """Give a version a tag, or take it away."""
    registry.tag(version, key, None if remove else value, by=by)
    found = registry.version(version)
    if as_json:
        return print_json({"model": registry.model, "version": found.version, "tags": found.tags})
    tags = ", ".join(f"{name}={said}" if said else name for name, said in found.tags.items())
    out.print(f"{found.name}: {tags or 'no tags'}", highlight=False)


@command
def note(registry: Registry, as_json: bool, version: str, text: str, by: ByOption = None) -> None:
    """Add a remark to a version; it stays."""
    registry.note(version, text, by=by)
    notes = registry.notes(version)
    if as_json:
        return print_json({"model": registry.model, "version": registry.version(version).version, "notes": notes})
    for said in notes:
        out.print(f"{said['at']}  {said['by']}: {said['text']}", highlight=False, markup=False)


def _promote_approved(registry: Registry, approval: Approval, by: str | None, comment: str) -> str | None:
    """Make the version the champion, if that is due; what came of it, in words. Raises `ConflictError` where it was
    weighed against another champion than that of now."""
    if approval.state != "approved" or registry.served(approval.version):
        return None
    found = registry.version(approval.version)
    rollout = str(registry.settings(found.version).get("rollout", {}).get("_target_", "Swap")).rpartition(".")[2]
    if rollout != "Swap":
        return f"the running loop rolls it out ({rollout})"
    champion = registry.champion()
    now = champion.version if champion else None
    try:
        if now is not None and found.compared_to is None:
            raise ConflictError(f"the champion of {registry.model} is {now}, and it was weighed against none")
        epoch = registry.promote(found.version, by=by, reason=f"approved: {comment}", expected=found.compared_to)
    except ConflictError as error:
        raise ConflictError(
            f"{found.name} is approved, but {error}. `cltrain promote {found.version}` all the same"
        ) from error
    return f"champion: {now or '–'} → {found.version} (epoch {epoch})"


def _times(asked: Approval | Permission) -> Json:
    return {name: to_json(getattr(asked, name)) for name in ("asked_at", "expires_at")}


def _permitted(permission: Permission, as_json: bool) -> None:
    if as_json:
        return print_json(to_json(permission))
    done = permission.state == "approved" and permission.version
    more = f": {permission.model}:{permission.version} is withdrawn" if done else ""
    out.print(f"{permission.subject} is {permission.state}{more}", highlight=False)


def _answered(registry: Registry, approval: Approval, as_json: bool, said: str | None = None) -> None:
    champion = registry.champion()
    if as_json:
        now = {"champion": champion.version if champion else None}
        return print_json({"model": registry.model} | to_json(approval) | now)
    missing = f", still to come: {approval.missing}" if approval.missing else ""
    out.print(f"{registry.model}:{approval.version} is {approval.state}{missing}", highlight=False)
    if said:
        out.print(said, highlight=False)
