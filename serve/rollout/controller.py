"""What moves a roll-out on: it looks at the evidence, asks `decide`, and commits what comes next.

All that it knows is in the desired state, so that after a crash, or on another machine, it goes on from there. Two of
them cannot both act: a commit names the epoch that it was decided at, and the second one finds another. It runs in the
application (`serve.control`), which outlives whoever started that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from cltrain.config import build
from cltrain.data.encoder import Encoder
from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.online.bandits import POLICIES
from cltrain.online.policy import Threshold, Weights
from cltrain.records import Json, Verdict, to_json
from cltrain.registry import Registry
from cltrain.registry.base import CHALLENGER, CHAMPION, PREVIOUS
from cltrain.registry.deployment import SHADOW, Deployment, Deployments, Status, Trial
from cltrain.registry.versions import PRODUCTION
from serve.endings import BY, Endings
from serve.policy.policy_layer import Adapter
from serve.policy.reranking import WeightsAdapter
from serve.rollout.bandit import Owner, require_features
from serve.rollout.consent import Consent
from serve.rollout.evidence import Seen, read_evidence
from serve.rollout.experiments import BanditTest, Interleave
from serve.rollout.guardrails import Reading, Sustained, about, psi, readings
from serve.rollout.kinds import KINDS
from serve.rollout.machine import Action, Evidence, RollOutKind, decide
from serve.rollout.outcomes import NO_COVARIATE, OutcomeReader, Outcomes
from serve.rollout.preference import PreferenceReader, require_one_score

log = logging.getLogger(__name__)

LABELS_S, REPORT_S = 1.0, 1.0
LOOKS = "looks"  # folder of what was seen last
READ_S = 2.0  # at most that one look spends on the logs
READING_SHARE = 0.1  # of the controller's time that goes into reading the logs, at most
ENDED: dict[str, Status] = {"promote": "promoted", "roll_back": "rolled_back", "stop": "stopped"}


def kind_of(name: str, settings: Json) -> RollOutKind:
    """The roll-out of a kind by its settings, nested ones as mappings; raises `ConfigError`."""
    if name not in KINDS:
        raise ConfigError(f"kind must be {', '.join(KINDS)}, not {name!r}")
    if "_target_" in str(settings):
        raise ConfigError("rollout settings are values: they cannot name a _target_")
    nested: Json = {"guardrails": {"_target_": "serve.rollout.guardrails.Guardrails", **settings.get("guardrails", {})}}
    if "policy" in settings:
        nested["policy"] = _policy(settings["policy"])
    if "metrics" in settings:
        nested["metrics"] = [{"_target_": "cltrain.online.design.Metric", **one} for one in settings["metrics"]]
    return build({**settings, **nested, "_target_": f"serve.rollout.{KINDS[name].__name__}"}, "rollout")


def _policy(given: Any) -> Json:
    """A bandit's policy by its name, or by `{name: ..., and its settings}`."""
    about = {"name": given} if isinstance(given, str) else given
    name = about.get("name") if isinstance(about, dict) else None
    if not isinstance(name, str) or name not in POLICIES:
        raise ConfigError(f"rollout.policy must be {', '.join(POLICIES)}, or a mapping with one of them as its name")
    rest = {key: value for key, value in about.items() if key != "name"}
    return {**rest, "_target_": f"cltrain.online.{POLICIES[name].__name__}"}


def settings_of(part: Any) -> Any:
    """Settings that make `part` again, with `_target_`."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        place = f"{type(part).__module__}.{type(part).__qualname__}"
        fields = {f.name: settings_of(getattr(part, f.name)) for f in dataclasses.fields(part) if f.init}
        return {"_target_": place, **fields}
    return [settings_of(item) for item in part] if isinstance(part, list | tuple) else to_json(part)


def begin(
    deployments: Deployments,
    kind: RollOutKind,
    version: str,
    *,
    by: str,
    reason: str,
    expected_epoch: int | None = None,
) -> Deployment:
    """Start a roll-out of `version`. Where there is no champion it becomes that at once. A roll-out of the very version
    that runs already is taken up. Raises `ConflictError` when another one runs, or somebody else was first."""
    now = deployments.current()
    epoch = now.epoch if expected_epoch is None else expected_epoch
    if now.champion is None:
        first = Deployment(roles={CHAMPION: version}, shares={CHAMPION: 1.0}, policy=now.policy, document=now.document)
        return deployments.commit(first, expected_epoch=epoch, by=by, reason=reason)
    if (running := now.running) is not None:
        if (running.version, running.kind) == (version, kind.kind):
            return now
        raise ConflictError(f"the roll-out {running.id} of {running.version} is running: end it first")
    if version == now.champion:
        raise ConflictError(f"{version} is the champion already")
    at = datetime.now(UTC)
    trial = Trial(
        id=f"{kind.kind}-{version}-{now.epoch + 1}",
        kind=kind.kind,
        settings=settings_of(kind),
        version=version,
        champion=now.champion,
        started_at=at,
        since=at,
    )
    return deployments.commit(_under_trial(kind, now, trial), expected_epoch=epoch, by=by, reason=reason)


def check_fit(registry: Registry, kind: RollOutKind, version: str) -> None:
    """Raise `ConfigError` for a version that a kind of roll-out is not for."""
    if isinstance(kind, Interleave):
        require_one_score(registry, version)
    if isinstance(kind, BanditTest):
        _require_arms(registry, kind, version)


def _require_arms(registry: Registry, kind: BanditTest, version: str) -> None:
    """Raise `ConfigError` for a version that is an arm already, was rolled back or is not there, or for features that
    the champion does not read."""
    champion = registry.champion()
    for other in kind.versions:
        if other == version or (champion is not None and other == champion.version):
            raise ConfigError(f"rollout.versions: {other} is an arm already: name others")
        if why := Deployments(registry).refused(other):
            raise ConfigError(f"rollout.versions: {other} was rolled back ({why})")
    if kind.policy.contextual and champion is not None:
        about = registry.store.storage.read_json(f"{champion.state}/encoder.json")
        require_features(Encoder.from_json(about), kind.features)


def make_way(deployments: Deployments, version: str, previous: str | None) -> None:
    """End the roll-out of another version that is still running: the newer one is offered. Raises `ConflictError` when
    neither `previous` nor `version` is the champion."""
    now = deployments.current()
    if now.champion not in (previous, version):
        raise ConflictError(f"the champion is {now.champion}, not {previous}: somebody else moved it")
    if now.running is not None and now.running.version != version:
        end(deployments, Action("stop", f"{version} is offered"), by="loop", id=now.running.id)


def end(deployments: Deployments, action: Action, *, by: str, id: str | None = None) -> Deployment:
    """End the roll-out that runs as `action` says. Raises `ConflictError` when none runs, or another than `id`."""
    now = deployments.current()
    if (trial := now.running) is None:
        raise ConflictError("no roll-out is running")
    if id is not None and id != trial.id:
        raise ConflictError(f"the roll-out that runs is {trial.id}, not {id}")
    return deployments.commit(after(now, trial, action), expected_epoch=now.epoch, by=by, reason=action.reason)


def after(now: Deployment, trial: Trial, action: Action, evidence: Json | None = None) -> Deployment:
    """What is desired once `action` is taken. Pure but for the clock."""
    at = datetime.now(UTC)
    seen: Json = {"evidence": trial.evidence if evidence is None else evidence, "reason": action.reason}
    if action.do == "step":
        step = dataclasses.replace(trial, step=action.to, since=at, **seen)
        return _under_trial(build(trial.settings, "rollout"), now, step)
    status, champion = ENDED[action.do], trial.champion
    if action.do == "promote":
        champion = action.version or trial.version
        status = "promoted" if champion == trial.version else "stopped"  # another version that was tried was better
    ended = dataclasses.replace(trial, status=status, since=at, **seen)
    roles = {CHAMPION: champion}
    if (previous := now.roles.get(PREVIOUS)) and previous != champion:
        roles[PREVIOUS] = previous
    return dataclasses.replace(now, roles=roles, shares={CHAMPION: 1.0}, salt="", roll_out=ended)


def _under_trial(kind: RollOutKind, now: Deployment, trial: Trial) -> Deployment:
    base = {role: now.roles[role] for role in (CHAMPION, PREVIOUS) if role in now.roles}
    roles = {**base, **kind.roles(trial.step, trial.version)}
    return dataclasses.replace(
        now, roles=roles, shares=dict(kind.shares(trial.step)), salt=trial.id, roll_out=trial, epoch=0
    )


def adapter_of(registry: Registry, policy: Threshold | Weights | None) -> Adapter | WeightsAdapter | None:
    """What lets the policy layer follow the log, if anything is to."""
    if policy is None:
        return None
    return WeightsAdapter(registry, policy) if isinstance(policy, Weights) else Adapter(registry, policy)


class Controller:
    """Looks every `every_s` seconds while a roll-out runs. replicas: that must stage a version before it has traffic,
    which may be set anew at any time. policy: how the threshold of a binary model follows what its decisions earn,
    while no roll-out runs; None leaves it. on_end: is told how a roll-out ended that a controller has ended, such as to
    send an alert; at least once, by the next controller of this store if this one dies before."""

    def __init__(
        self,
        registry: Registry,
        *,
        replicas: int,
        every_s: float = 0.1,
        policy: Threshold | Weights | None = None,
        on_end: Callable[[Trial], None] | None = None,
    ) -> None:
        self.error: str | None = None
        self.replicas = replicas
        self._registry, self._deployments = registry, Deployments(registry)
        self._every_s, self._on_end = every_s, on_end
        self._endings = Endings(registry, self._tell, kept=True)
        self._epoch, self._current = -1, Deployment(roles={}, shares={})
        self._trial_id, self._sustained = "", Sustained(0.0)
        self._kind: RollOutKind | None = None
        self._owner: Owner | None = None
        self._reader: PreferenceReader | None = None
        self._follower: OutcomeReader | None = None
        self._consent = Consent(registry)
        self._outcomes, self._labels_due, self._report_due = Outcomes(), 0.0, 0.0
        self._adapter, self._adapt_due = adapter_of(registry, policy), 0.0
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="cltrain-rollouts")
        self._thread.daemon = True

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> Action | None:
        """One look at the roll-out that runs, and what was done about it; None while none runs. Raises `StoreError`."""
        epoch = self._deployments.epoch()
        self._endings.look(epoch)
        if epoch != self._epoch:
            self._current, self._epoch = self._deployments.current(), epoch
        trial = self._current.running
        if trial is None:
            self._adapt()
            return None
        kind = self._kind_of(trial)
        now = datetime.now(UTC)
        seen = read_evidence(self._registry.store.storage, trial.id)
        outcomes = self._labels(kind, trial)
        found = read_guardrails(kind, trial, seen, outcomes)
        broken = self._sustained.update(found, now)
        action = self._consent.of(trial, decide(kind, trial, Evidence(seen, outcomes, broken, self.replicas), now))
        if action.do != "hold":
            self._act(trial, action, evidence_json(seen, found, outcomes))
        elif time.monotonic() >= self._report_due:
            self._report_due = time.monotonic() + REPORT_S
            shown = evidence_json(seen, found, outcomes) | {"next": action.reason, "at": to_json(now)}
            self._registry.store.storage.write_json(f"{LOOKS}/{trial.id}.json", shown)
        return action

    def _adapt(self) -> None:
        """Let the policy layer follow the log, as often as labels are read."""
        if self._adapter is None or time.monotonic() < self._adapt_due:
            return
        started = time.monotonic()
        try:
            done = self._adapter.look(self._current)
        except ConflictError:  # somebody else was first: look again
            self._epoch = -1
            return
        if done is not None:
            self._current, self._epoch = done, done.epoch
        self._adapt_due = time.monotonic() + max(LABELS_S, (time.monotonic() - started) / READING_SHARE)

    def _act(self, trial: Trial, action: Action, evidence: Json) -> None:
        record = after(self._current, trial, action, evidence)
        try:
            done = self._deployments.commit(record, expected_epoch=self._epoch, by=BY, reason=action.reason)
        except ConflictError:  # somebody else was first: look again
            self._epoch = -1
            return
        self._current, self._epoch = done, done.epoch
        assert done.roll_out is not None
        if done.roll_out.status == "rolled_back":
            log.warning("%s of %s is rolled back: %s", trial.kind, trial.version, action.reason)
        if done.running is None:
            self._endings.look(done.epoch)

    def _tell(self, ended: Deployment) -> None:
        """What went well in live traffic is production-validated."""
        trial = ended.roll_out
        assert trial is not None
        if ended.champion is not None and ended.champion != trial.champion:
            with contextlib.suppress(ConflictError):
                verdict = Verdict(accepted=True, reasons=(f"{trial.kind}: {trial.reason}",))
                self._registry.advance(ended.champion, PRODUCTION, verdict, by=BY)
        if self._on_end is not None:
            self._on_end(trial)

    def _kind_of(self, trial: Trial) -> RollOutKind:
        if self._kind is None or self._trial_id != trial.id:
            self._trial_id, self._kind = trial.id, build(trial.settings, "rollout")
            self._sustained = Sustained(self._kind.guardrails.sustain_s)
            self._outcomes, self._labels_due = Outcomes(), 0.0
            self._owner = self._owner_of(self._kind, trial)
            self._reader = preference_reader(self._registry, self._kind, trial)
            self._follower = outcome_reader(self._registry, self._kind, trial)
        return self._kind

    def _owner_of(self, kind: RollOutKind, trial: Trial) -> Owner | None:
        if not isinstance(kind, BanditTest):
            return None
        return Owner(
            self._registry.store.storage,
            self._registry.model,
            trial,
            policy=kind.floored,
            arms=kind.arms,
            reward_type=kind.guardrails.reward_type,
            max_loss=kind.max_loss,
            label_horizon=kind.label_horizon,
        )

    def _labels(self, kind: RollOutKind, trial: Trial) -> Outcomes:
        """What is new is read every `LABELS_S` seconds, and less often where that takes long."""
        if trial.step >= 0 and time.monotonic() >= self._labels_due:
            started = time.monotonic()
            if self._reader is not None:
                self._outcomes = self._reader.read(datetime.now(UTC))
            elif self._owner is not None:
                self._outcomes = self._owner.update()
            elif self._follower is not None:
                self._outcomes = self._follower.read()
            took = time.monotonic() - started
            self._labels_due = time.monotonic() + max(LABELS_S, took / READING_SHARE)
        return self._outcomes

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.look()
                self.error = None
            except Exception as error:  # a store that is down: the roll-out stays where it is until it is back
                message = f"{type(error).__name__}: {error}"
                if message != self.error:
                    log.error("the roll-out of %s cannot go on: %s", self._registry.model, message)
                self.error = message
                self._stop.wait(1.0)


def preference_reader(registry: Registry, kind: RollOutKind, trial: Trial) -> PreferenceReader | None:
    """What follows the clicks on interleaved lists; None for other kinds."""
    if not isinstance(kind, Interleave):
        return None
    return PreferenceReader(
        registry.store.storage,
        registry.model,
        "experiment",
        trial.id,
        trial.started_at,
        session_s=kind.session_s,
        click_type=kind.click_type,
        reward_type=kind.guardrails.reward_type,
        level=kind.level,
    )


def outcome_reader(registry: Registry, kind: RollOutKind, trial: Trial) -> OutcomeReader:
    return OutcomeReader(
        registry.store.storage,
        registry.model,
        version=trial.version,
        since=trial.started_at - timedelta(seconds=getattr(kind, "watch_s", 0.0)),
        reward_type=kind.guardrails.reward_type,
        kind=trial.kind,
        covariate=getattr(kind, "covariate", NO_COVARIATE),
        metrics=kind.guardrails.max_metric_shift,
        budget_s=READ_S,
    )


def read_guardrails(kind: RollOutKind, trial: Trial, seen: Seen, outcomes: Outcomes) -> tuple[Reading, ...]:
    guard = kind.guardrails
    if trial.kind == SHADOW:  # a shadow's process waits for the live ones
        guard = dataclasses.replace(guard, max_p99_ratio=None)
    ours, theirs, all_theirs = seen.arm(CHALLENGER, trial.step), seen.arm(CHAMPION, trial.step), seen.arm(CHAMPION)
    return readings(guard, ours, theirs, all_theirs, outcomes, seen.ordered)


def evidence_json(seen: Seen, found: tuple[Reading, ...], outcomes: Outcomes) -> Json:
    """What was seen, as a report shows it."""
    ours, theirs = seen.arm(CHALLENGER), seen.arm(CHAMPION)
    return {
        "replicas": len(seen.staged),
        "champion": theirs.summary(),
        "challenger": ours.summary(),
        "psi": psi(ours, theirs),
        "guardrails": about(found),
        "outcomes": outcomes.to_json(),
    }


def report(registry: Registry, trial: Trial) -> Json:
    """What the controller last saw of a roll-out that runs; empty before its first look."""
    with contextlib.suppress(StoreError):
        return registry.store.storage.read_json(f"{LOOKS}/{trial.id}.json")
    return {}
