"""Where people come in: what a loop does by itself, what it asks people for, and what it only tells them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from cltrain.clock import parse_duration
from cltrain.errors import CltrainError, ConfigError
from cltrain.parts import Alert, Clock
from cltrain.records import Answer
from cltrain.registry import Registry
from cltrain.registry.permissions import RETRAIN, ROLL_BACK

log = logging.getLogger(__name__)

Policy = Literal["auto", "approve", "notify"]
POLICIES = ("auto", "approve", "notify")


class AwaitingApprovalError(CltrainError):
    """The round cannot go on before somebody answers. Run again, it goes on from there. version: or another subject,
    such as `retrain/12`."""

    def __init__(self, model: str, version: str, missing: str) -> None:
        super().__init__(
            f"{model}:{version} awaits approval ({missing}): cltrain approve {version} (or cltrain reject {version}), "
            "and run the same job again"
        )
        self.version = version


@dataclass(frozen=True, kw_only=True)
class Approval:
    """promote: a version that the gate accepted becomes champion, or is rolled out. retrain: an update that the trigger
    asks for is made; the first one, and one that is asked for by hand, are not held up. roll_back: a version that fails
    in traffic is withdrawn. For each of them: `auto`, it is done; `approve`, it waits until `cltrain approve` or
    `cltrain reject`; `notify`, people are told, and do it themselves or not.

    A roll-back that waits stops the roll-out at once: all traffic goes to the champion, and what waits is whether the
    version is withdrawn for good. One that is only told of leaves the traffic as it is, at the step that the roll-out
    had come to.

    A job that runs on the wall clock waits for an answer and looks every `poll_s` seconds; one that runs over history
    ends there, and goes on when it is started again. roles: who must sign for a promotion, each role once; one person
    of any role where it is empty, as for the others. timeout: after which no answer is taken as `on_timeout`; None: it
    is waited for, for ever."""

    promote: Policy = "auto"
    retrain: Policy = "auto"
    roll_back: Policy = "auto"
    roles: tuple[str, ...] = ()
    timeout: str | None = None
    on_timeout: Literal["reject", "approve"] = "reject"
    poll_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("promote", "retrain", "roll_back"):
            if getattr(self, name) not in POLICIES:
                raise ConfigError(f"approval.{name} must be auto, approve or notify, not {getattr(self, name)!r}")
        if self.on_timeout not in ("reject", "approve"):
            raise ConfigError(f"approval.on_timeout must be reject or approve, not {self.on_timeout!r}")
        if self.timeout is not None:
            parse_duration(self.timeout)
        if len(set(self.roles)) < len(self.roles):
            raise ConfigError(f"approval.roles must be distinct, not {list(self.roles)}")
        if self.roles and self.promote != "approve":
            raise ConfigError(f"approval.roles sign for a promotion: set approval.promote=approve, not {self.promote}")
        if self.roles and self.timeout and self.on_timeout == "approve":
            raise ConfigError(
                "approval.on_timeout=approve would pass over approval.roles: use approval.on_timeout=reject"
            )
        if self.poll_s <= 0:
            raise ConfigError(f"approval.poll_s must be above 0 seconds, not {self.poll_s}")

    def may_promote(self, registry: Registry, version: str, clock: Clock, alert: Alert) -> Answer:
        """Whether a version that the gate accepted is promoted. Raises `AwaitingApprovalError` where nobody has
        answered and the clock does not wait."""
        if self.promote == "auto":
            return Answer(accepted=True, reason="promoted without asking")
        name = f"{registry.model}:{version}"
        if self.promote == "notify":
            return _told(registry, version, f"{name} could be promoted: cltrain promote {version}", alert)
        known = registry.approval(version)
        registry.ask(version, expires_at=self._until() if known is None else known.expires_at, roles=self.roles)
        if known is None:
            alert(f"{name} awaits approval", f"cltrain approve {version}, or cltrain reject {version}")

        def look() -> Answer | str:
            registry.expire()
            found = registry.approval(version)
            assert found is not None
            if found.state == "expired" and self.on_timeout == "approve":
                found = registry.approve(version, by="timeout", comment=f"nobody within {self.timeout}", override=True)
            return found.missing if found.state == "awaiting" else self._answer(found)

        return self._wait(look, registry, version, clock)

    def may_retrain(self, registry: Registry, round_index: int, why: str, clock: Clock, alert: Alert) -> Answer:
        """Whether the update that the trigger asks for in a round is made. Raises `AwaitingApprovalError` as
        `may_promote` does."""
        if self.retrain == "auto":
            return Answer(accepted=True, reason="updated without asking")
        subject = f"{RETRAIN}{round_index}"
        if self.retrain == "notify":
            text = f"an update of {registry.model} is due ({why}): python -m jobs.update"
            return _told(registry, subject, text, alert)
        if registry.permission(subject) is None:
            alert(f"an update of {registry.model} awaits approval", f"{why}: cltrain approve {subject}")
        registry.ask_for(subject, why=why, expires_at=self._until(), on_timeout=self.on_timeout)

        def look() -> Answer | str:
            registry.settle()
            found = registry.permission(subject)
            assert found is not None
            return why if found.state == "awaiting" else self._answer(found)

        return self._wait(look, registry, subject, clock)

    def may_roll_back(self, registry: Registry, trial: str, version: str, why: str) -> Policy:
        """What becomes of a roll-back that is due; asks for the withdrawal of the version, or tells people, where that
        is the policy. trial: id of the roll-out. Doing it again changes nothing."""
        subject = f"{ROLL_BACK}{trial}"
        if self.roll_back == "notify":
            text = f"{registry.model}:{version} fails in traffic ({why}): POST /rollouts/halt ends {trial}"
            _told(registry, subject, text, None)
        elif self.roll_back == "approve" and registry.permission(subject) is None:
            until, instead = self._until(), self.on_timeout
            registry.ask_for(subject, why=why, version=version, expires_at=until, on_timeout=instead, by="roll-out")
            log.warning("%s:%s has no traffic any more (%s): cltrain approve %s", registry.model, version, why, subject)
        return self.roll_back

    def _until(self) -> datetime | None:
        return datetime.now(UTC) + parse_duration(self.timeout) if self.timeout else None

    def _answer(self, found: Any) -> Answer:
        if found.state == "expired":
            return Answer(accepted=False, reason=f"nobody answered within {self.timeout}")
        accepted = found.state == "approved"
        return Answer(accepted=accepted, reason=f"{found.state} by {found.by}: {found.comment or 'no comment'}")

    def _wait(self, look: Callable[[], Answer | str], registry: Registry, subject: str, clock: Clock) -> Answer:
        """The answer; `look` gives what is missing where there is none yet."""
        while isinstance(found := look(), str):
            if not clock.waits:
                raise AwaitingApprovalError(registry.model, subject, found)
            time.sleep(self.poll_s)
        return found


def roll_back_policy(settings: Mapping[str, Any]) -> Approval:
    """What the strategy that made a version says of its roll-back; `settings` are those of the version."""
    names = ("roll_back", "timeout", "on_timeout")
    said = {name: value for name, value in settings.get("approval", {}).items() if name in names}
    return Approval(**cast(Any, said))


def _told(registry: Registry, subject: str, text: str, alert: Alert | None) -> Answer:
    if registry.tell(subject, text):
        log.warning("%s", text)
        if alert is not None:
            alert(f"{registry.model}: {subject}", text)
    return Answer(accepted=False, reason=f"left to people, who were told: {text}")
