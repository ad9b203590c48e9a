"""The path, in one sentence: cut a window, see what came, ask the trigger, freeze a snapshot, update the champion into
a challenger, weigh it, gate it, register it, roll it out, and go on. Live and backtest are this same loop; a backtest
only takes the clock from the data."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from cltrain.approval import Approval, AwaitingApprovalError
from cltrain.data.contract import Contract
from cltrain.data.event_log import EventLog
from cltrain.data.snapshot import Snapshots
from cltrain.drift import drift
from cltrain.errors import ConflictError, UpdateError
from cltrain.evaluate import Evaluation
from cltrain.evaluate.cache import PredictionCache
from cltrain.evaluate.spread import Spread
from cltrain.gate import choose
from cltrain.observe import Watch
from cltrain.parts import Clock, Gate, RollOutKind, Runner, Serving, Timeline, Windows
from cltrain.records import (
    Answer,
    Challenger,
    Decision,
    Json,
    Kind,
    Observation,
    ReportCard,
    RollOut,
    Round,
    Snapshot,
    UpdateRequest,
    Verdict,
    Window,
    to_json,
)
from cltrain.registry import Registry, RoundLog, VersionRecord
from cltrain.seeding import derive_seed
from cltrain.storage import digest_json
from cltrain.tracking.base import Tracker
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Recalibrate
from cltrain.trigger import Evidence, Trigger


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An update that somebody asks for: of this kind, from this version, for this reason; a surgery with the parameters
    of the base by the names of the new ones, where they differ."""

    kind: Kind
    base: VersionRecord
    reason: str
    transfer_names: Json = field(default_factory=dict)


@dataclass(kw_only=True)
class Loop:
    log: EventLog
    clock: Clock
    windows: Windows
    snapshots: Snapshots
    contract: Contract
    trigger: Trigger
    recalibrate: Recalibrate
    stateful: bool
    runner: Runner
    evaluation: Evaluation
    gate: Gate
    approval: Approval
    registry: Registry
    rounds: RoundLog
    serving: Serving
    rollout: RollOutKind
    tracker: Tracker
    settings: Json
    seed: int
    finished: list[Round] = field(default_factory=list)
    awaiting: AwaitingApprovalError | None = None

    def run(self, max_rounds: int | None = None) -> list[Round]:
        """Turn round after round until the clock says that nothing more will come, `max_rounds` are finished, or one
        cannot go on without people, of whom `awaiting` then tells."""
        watch = self.watch()
        while True:
            for window in self.windows.cut(
                Timeline(self.log, self.clock), self.finished[-1].window if self.finished else None
            ):
                if max_rounds is not None and len(self.finished) >= max_rounds:
                    return self.finished
                try:
                    self.finished.append(self.turn(window, watch))
                except AwaitingApprovalError as error:
                    self.awaiting = error
                    return self.finished
                self.tracker.finished(self.finished[-1])
            if not self.clock.wait():
                return self.finished
            self.log.refresh()

    def watch(self) -> Watch:
        """Go on from the rounds that are on file."""
        self.finished = self.rounds.finished()
        return Watch(self.log, self.snapshots, self.contract, self.registry, self.finished)

    def by_hand(self, kind: Kind, base: str, reason: str, transfer_names: Json | None = None) -> Round:
        """One round outside the series, because somebody asks for it: with all that became known since `base`."""
        watch = self.watch()
        version = self.registry.version(base)
        now = self.clock.now(self.log.end())
        start = min(version.challenger.cursor.until, now)
        asked = Asked(kind=kind, base=version, reason=reason, transfer_names=transfer_names or {})
        about = {"kind": kind, "base": version.version, "reason": reason, "transfer_names": asked.transfer_names}
        index = self.rounds.by_hand(about | {"settings": digest_json(self.settings)})
        return self.turn(Window(index=index, start=start, end=now), watch, asked)

    def turn(self, window: Window, watch: Watch, asked: Asked | None = None) -> Round:
        """One round. Each stage is on file before the next begins, so that a crash costs one stage at most."""
        started = time.perf_counter()
        if self.approval.roll_back == "approve":
            self.registry.settle()  # what nobody answered in time
        champion = self._champion_of(window)
        base = asked.base if asked else champion
        once = _Stages(self.rounds, self.tracker, window)
        seen = once("observe", Observation, lambda: watch.observe(window, base))
        decision = once("decide", Decision, lambda: self._decide(window, seen, champion, asked))
        if decision.fire and self.approval.retrain != "auto" and champion is not None and asked is None:
            answer = once("approve update", Answer, lambda: self._may_retrain(window, decision.reason))
            decision = replace(decision, fire=answer.accepted, reason=f"{decision.reason}; {answer.reason}")
        versions: list[VersionRecord] = []
        winner = roll_out = freshness = None
        served: Json = {}
        if decision.fire:
            with self.serving.traffic(watch.rows(seen), self.seed + window.index) as traffic:
                try:
                    for kind in [asked.kind] if asked else self._kinds(window, champion):
                        versions.append(
                            self._challenge(kind, window, decision, seen, base, champion, watch, once, asked)
                        )
                    place = choose([self.registry.card(v.version) for v in versions], [v.verdict for v in versions])
                    winner = versions[place] if place is not None else None
                    if winner is not None and self.approval.promote != "auto":
                        answer = once("approve", Answer, lambda: self._may_promote(winner))
                        decision = replace(decision, reason=f"{decision.reason}; {winner.version} {answer.reason}")
                        winner = winner if answer.accepted else None
                    if winner is not None:
                        roll_out = once("roll_out", RollOut, lambda: self._promote(winner, champion, window))
                        if roll_out.status == "promoted":
                            freshness = time.perf_counter() - started
                except (UpdateError, ConflictError) as error:
                    decision = Decision(fire=True, reason=f"{decision.reason}; but {error}")
            served = traffic.result
        return once(
            "done",
            Round,
            lambda: Round(
                index=window.index,
                window=window,
                status=_status(seen, decision, versions, roll_out),
                observation=seen,
                decision=decision,
                champion=_champion_after(roll_out, champion),
                versions=tuple(_about(v, self.registry.card(v.version)) for v in versions),
                roll_out=roll_out,
                cursor=seen.cursor,
                served=served,
                freshness_s=freshness,
                seconds=time.perf_counter() - started,
            ),
        )

    def _champion_of(self, window: Window) -> VersionRecord | None:
        """The champion when the round began: one that was taken up after its own promotion must not see that one."""
        now = self.registry.champion()
        began = self.rounds.once(window.index, "begin", dict, lambda: {"champion": now.version if now else None})
        return self.registry.version(began["champion"]) if began["champion"] else None

    def _decide(
        self, window: Window, seen: Observation, champion: VersionRecord | None, asked: Asked | None
    ) -> Decision:
        if asked:
            return Decision(fire=True, reason=asked.reason)
        if seen.problems:
            return Decision(fire=False, reason="quarantined: " + "; ".join(seen.problems))
        if not seen.fresh.rows:
            return Decision(fire=False, reason="no labelled row is fresh")
        if champion is None:
            return Decision(fire=True, reason="there is no champion yet")
        fired = [r.window.end for r in self.finished if r.decision.fire]
        trained = self.registry.trained_rows(champion.version)
        return self.trigger.decide(
            Evidence(now=window.end, last_update=fired[-1], fresh_rows=seen.fresh.rows, trained_rows=trained)
        )

    def _kinds(self, window: Window, champion: VersionRecord | None) -> list[Kind]:
        if champion is None or not self.stateful:
            return ["stateless"]
        return ["stateful", "stateless"] if self.recalibrate.is_due(window.index) else ["stateful"]

    def _challenge(
        self,
        kind: Kind,
        window: Window,
        decision: Decision,
        seen: Observation,
        base: VersionRecord | None,
        champion: VersionRecord | None,
        watch: Watch,
        once: _Stages,
        asked: Asked | None,
    ) -> VersionRecord:
        """Freeze, update, weigh, judge and register one challenger; a stateful one continues from `base`."""
        since = self.recalibrate.since(window.end)
        snapshot = seen.fresh
        settings = {key: self.settings[key] for key in ("model", "method", "train", "adapter")}
        if kind == "surgery" and asked:
            settings["transfer_names"] = asked.transfer_names
        if kind != "stateful":
            snapshot = once(
                f"snapshot {kind}",
                Snapshot,
                lambda: self.snapshots.between("train", "train", window.end, since, window.end),
            )
        request = UpdateRequest(
            number=abs(2 * window.index) + (kind != "stateful"),
            kind=kind,
            parent=base.state if base and kind != "stateless" else None,
            snapshot=snapshot,
            cursor=seen.cursor,
            seed=derive_seed(self.seed, "update", window.index, kind),
            task=self.log.source.columns.task,
            settings=settings,
        )
        challenger = once(f"update {kind}", Challenger, lambda: self._update(request))
        card = once(
            f"weigh {kind}",
            ReportCard,
            lambda: replace(
                self._weigh(challenger, champion, watch.held_out(window.index, seen), window, seen),
                drift=self._drift(snapshot, base or champion),
            ),
        )
        verdict = once(f"judge {kind}", Verdict, lambda: self.gate.judge(card))
        version = self.registry.register(
            challenger,
            card,
            verdict,
            round_index=window.index,
            reason=decision.reason,
            compared_to=champion.version if champion else None,
            settings=self.settings,
        )
        if kind != "stateful":  # its rows are the whole history, again and again
            self.snapshots.forget(snapshot)
        return version

    def _update(self, request: UpdateRequest) -> Challenger:
        self.snapshots.table(request.snapshot)  # decoded for the workers, should the cache be gone
        return self.runner.update(request)

    def _weigh(
        self,
        challenger: Challenger,
        champion: VersionRecord | None,
        held_out: list[tuple[int, pa.Table]],
        window: Window,
        seen: Observation,
    ) -> ReportCard:
        storage = self.registry.store.storage
        ours = Predictor.load(storage, challenger.state)
        theirs = Predictor.load(storage, champion.state) if champion else None
        known = [(ours, challenger.state, challenger.weights_digest)]
        if champion and theirs:
            known.append((theirs, champion.state, champion.weights_digest))
        sound = {r.index: r.observation.holdout.digest for r in self.finished if r.sound}
        spread = Spread(
            workers=self.runner.workers,
            start=lambda: self.runner,
            states=[(version, state) for version, state, _ in known],
            snapshots=sound | {window.index: seen.holdout.digest},
        )
        cache = PredictionCache(storage=storage).of(*((v, f"{state} {digest}") for v, state, digest in known))
        seed = derive_seed(self.seed, "weigh", window.index)
        return self.evaluation.card(ours, theirs, held_out, seed, score=spread, cache=cache)

    def _drift(self, snapshot: Snapshot, before: VersionRecord | None) -> Json:
        storage = self.registry.store.storage
        return drift(self.snapshots, storage, snapshot, before.challenger.snapshot if before else None)

    def _may_retrain(self, window: Window, why: str) -> Answer:
        return self.approval.may_retrain(self.registry, window.index, why, self.clock, self.tracker.alert)

    def _may_promote(self, winner: VersionRecord) -> Answer:
        return self.approval.may_promote(self.registry, winner.version, self.clock, self.tracker.alert)

    def _promote(self, winner: VersionRecord, champion: VersionRecord | None, window: Window) -> RollOut:
        previous = champion.version if champion else None
        return self.serving.roll_out(self.registry, winner.version, previous, self.rollout, winner.reason)


@dataclass(frozen=True)
class _Stages:
    rounds: RoundLog
    tracker: Tracker
    window: Window

    def __call__(self, stage: str, kind: Any, produce: Any) -> Any:
        self.tracker.working(f"{self.window.start:%Y-%m-%d %H:%M}", stage)
        return self.rounds.once(self.window.index, stage, kind, produce)


def _status(seen: Observation, decision: Decision, versions: list[VersionRecord], roll_out: RollOut | None) -> Any:
    if decision.fire:
        return roll_out.status if roll_out else "rejected" if versions else "failed"
    return "quarantined" if seen.problems else "waited" if seen.fresh.rows else "empty"


def _champion_after(roll_out: RollOut | None, before: VersionRecord | None) -> str | None:
    if roll_out is not None and roll_out.status == "promoted":
        return roll_out.version
    return before.version if before else None


def _about(version: VersionRecord, card: ReportCard) -> Json:
    about = version.summary()
    kept = ("version", "kind", "parent", "compared_to", "snapshot_digest", "weights_digest")
    trained = ("rows_trained", "rows_replayed", "seconds", "absorb_seconds", "loss", "steps", "parameters", "workers")
    return {
        **{key: about[key] for key in (*kept, *trained)},
        "rows": version.challenger.snapshot.rows,
        "accepted": version.verdict.accepted,
        "reasons": list(version.verdict.reasons),
        "score": version.verdict.score,
        **to_json(card),
    }
