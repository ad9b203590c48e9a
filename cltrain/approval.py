"""Who says yes before a version reaches traffic: nobody, or people."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cltrain.clock import parse_duration
from cltrain.errors import CltrainError, ConfigError
from cltrain.parts import Clock
from cltrain.records import Answer
from cltrain.registry import Registry


class AwaitingApprovalError(CltrainError):
    """The round cannot go on before somebody answers. Run again, it goes on from there."""

    def __init__(self, model: str, version: str, missing: str) -> None:
        super().__init__(
            f"{model}:{version} awaits approval ({missing}): cltrain approve {version} (or cltrain reject {version}), "
            "and run the same job again"
        )
        self.version = version


@dataclass(frozen=True, kw_only=True)
class Approval:
    """by: `nobody`, or `human`: the round stops before promotion until `cltrain approve` or `cltrain reject`. A job
    that runs on the wall clock waits and looks every `poll_s` seconds; one that runs over history ends there, and goes
    on when it is started again. roles: who must sign, each role once; one person of any role where it is empty.
    timeout: after which no answer is taken as `on_timeout`; None: it is waited for, for ever."""

    by: Literal["nobody", "human"] = "nobody"
    roles: tuple[str, ...] = ()
    timeout: str | None = None
    on_timeout: Literal["reject", "promote"] = "reject"
    poll_s: float = 5.0

    def __post_init__(self) -> None:
        if self.by not in ("nobody", "human"):
            raise ConfigError(f"approval.by must be nobody or human, not {self.by!r}")
        if self.on_timeout not in ("reject", "promote"):
            raise ConfigError(f"approval.on_timeout must be reject or promote, not {self.on_timeout!r}")
        if self.timeout is not None:
            parse_duration(self.timeout)
        if len(set(self.roles)) < len(self.roles):
            raise ConfigError(f"approval.roles must be distinct, not {list(self.roles)}")
        if self.roles and self.timeout and self.on_timeout == "promote":
            raise ConfigError(
                "approval.on_timeout=promote would pass over approval.roles: use approval.on_timeout=reject"
            )
        if self.poll_s <= 0:
            raise ConfigError(f"approval.poll_s must be above 0 seconds, not {self.poll_s}")

    def answer(self, registry: Registry, version: str, clock: Clock) -> Answer:
        """What people say of a version. Raises `AwaitingApprovalError` where nobody has answered and the clock does not
        wait."""
        expires = datetime.now(UTC) + parse_duration(self.timeout) if self.timeout else None
        known = registry.approval(version)
        registry.ask(version, expires_at=expires if known is None else known.expires_at, roles=self.roles)
        while True:
            registry.expire()
            found = registry.approval(version)
            assert found is not None
            if found.state == "approved":
                return Answer(accepted=True, reason=f"approved by {found.by}: {found.comment or 'no comment'}")
            if found.state == "rejected":
                return Answer(accepted=False, reason=f"rejected by {found.by}: {found.comment or 'no comment'}")
            if found.state == "expired" and self.on_timeout == "reject":
                return Answer(accepted=False, reason=f"nobody answered within {self.timeout}")
            if found.state == "expired":
                registry.approve(version, by="timeout", comment=f"nobody within {self.timeout}", override=True)
                continue
            if not clock.waits:
                raise AwaitingApprovalError(registry.model, version, found.missing)
            time.sleep(self.poll_s)
