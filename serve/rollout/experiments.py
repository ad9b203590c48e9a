"""Roll-outs that ask which version is better, by what comes back: labels, rewards and clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal, get_args

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError
from cltrain.online.ab import Tally, conclude
from cltrain.online.bandits import Policy, Thompson
from cltrain.online.design import Experiment, Metric
from cltrain.online.interleave import Wins
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.registry.deployment import Trial
from serve.logs.feedback import FeedbackType
from serve.rollout.bandit import BANDIT, BanditOutcomes, with_floor
from serve.rollout.guardrails import Reading, readings
from serve.rollout.machine import Action, Common, Evidence, Then, seconds
from serve.rollout.outcomes import LOSS, NO_COVARIATE, REWARD, Outcomes
from serve.rollout.preference import INTERLEAVE, Preference


@dataclass(frozen=True, kw_only=True)
class ABTest(Common):
    """A fixed share of units, until the labels say who is better. The settings are those of
    `cltrain.online.design.Experiment`. metrics: `loss`, a row, and `reward`, the sum of a unit's numeric labels of
    guardrails.reward_type; without any it is the loss, of which a difference of 0.02 matters. After `max_s` seconds,
    or at the horizon, without a verdict `at_end` says what to do.

    covariate: takes variance out of the metrics, so that fewer units are enough (CUPED): `pre_period`, the same metric
    of the same unit in the 28 days before, as the log has it; the name of a numeric feature, as a unit's first row has
    it; or `none`. Requests need a unit_id that comes again."""

    kind: ClassVar[str] = "ab"
    share: float = 0.5
    covariate: str = NO_COVARIATE
    metrics: tuple[Metric, ...] = ()
    level: float = 0.05
    power: float = 0.8
    test: Literal["always", "horizon"] = "always"
    horizon_units: int = 100_000
    cycle: str = "1d"
    min_cycles: int = 1
    min_units: int = 100
    sample_ratio_level: float = 0.001
    max_s: float = 2_592_000.0
    at_end: Then = "stop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ConfigError(f"rollout.share must be between 0 and 1, not {self.share}")
        if not self.covariate:
            raise ConfigError("rollout.covariate must be none, pre_period or the name of a feature")
        for metric in self.metrics:
            if metric.name not in (LOSS, REWARD):
                raise ConfigError(f"rollout.metrics are loss and reward, not {metric.name}")
            if metric.name == REWARD and self.guardrails.reward_type is None:
                raise ConfigError("rollout.metrics: reward needs rollout.guardrails.reward_type, the feedback meant")
        try:
            self.experiment("salt")
        except ConfigError as error:
            raise ConfigError(f"rollout: {error}") from error

    def experiment(self, salt: str) -> Experiment:
        names = ("level", "power", "test", "horizon_units", "cycle", "min_cycles", "min_units")
        given = {name: getattr(self, name) for name in (*names, "sample_ratio_level")}
        metrics = self.metrics or (Metric(name=LOSS, effect=0.02, better="lower"),)
        return Experiment(salt=salt, shares=dict(self.shares(0)), metrics=metrics, **given)

    def shares(self, step: int) -> Mapping[str, float]:
        share = self.share if step >= 0 else 0.0
        return {CHAMPION: 1.0 - share, CHALLENGER: share}

    def roles(self, step: int, version: str) -> Mapping[str, str]:
        return {CHALLENGER: version}

    def next(self, trial: Trial, evidence: Evidence, now: datetime) -> Action:
        experiment = self.experiment(trial.id)
        tally = tally_of(experiment, evidence.outcomes)
        said = conclude(experiment, tally, now - trial.since)
        why = "; ".join(said.reasons)
        if said.action == "go_on" and seconds(trial.since, now) > self.max_s:
            return Action("stop", f"no verdict after {self.max_s:g} s: {why}")
        if said.sample_ratio_p <= self.sample_ratio_level and said.action == "horizon":
            return Action("stop", why)
        done: dict[str, Action] = {
            "go_on": Action("hold", why),
            "promote": Action("promote", why),
            "harm": Action("roll_back", why),
            "futility": Action(self.at_end, why),
            "horizon": Action(self.at_end, why),
        }
        return done[said.action]


@dataclass(frozen=True, kw_only=True)
class Interleave(Common):
    """For rankers: what both versions rank on `/rank` is drafted into one list, until clicks say whose items people
    prefer. `/predict` is answered by the champion.

    A click is feedback of `click_type` (null: any but guardrails.reward_type), with a number above 0, on the request
    id of an item, and weighs by how far apart the two rankings have what they pick in that turn. A unit counts once,
    by the clicks of its first `session_s` seconds. From `min_samples` sessions with a winner on, the test may be read
    at any time at level `level`; a preferred version is promoted, or `then` stops with the report, such as for an A/B
    test. Without a verdict after `max_s` seconds it is stopped. Clicks are the quality here:
    guardrails.max_loss_increase is not read, since items that nobody clicks have no label."""

    kind: ClassVar[str] = INTERLEAVE
    level: float = 0.05
    min_samples: int = 100
    session_s: float = 1800.0
    click_type: FeedbackType | None = None
    max_s: float = 2_592_000.0
    then: Then = "promote"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.level < 1:
            raise ConfigError(f"rollout.level must be between 0 and 1, not {self.level}")
        if not self.session_s > 0:
            raise ConfigError(f"rollout.session_s must be above 0 seconds, not {self.session_s}")
        if self.click_type not in (None, *get_args(FeedbackType)):
            types = ", ".join(get_args(FeedbackType))
            raise ConfigError(f"rollout.click_type must be {types}, or null for any, not {self.click_type!r}")
        if self.then not in get_args(Then):
            raise ConfigError(f"rollout.then must be {' or '.join(get_args(Then))}, not {self.then!r}")

    def shares(self, step: int) -> Mapping[str, float]:
        return {CHAMPION: 1.0, CHALLENGER: 0.0}

    def roles(self, step: int, version: str) -> Mapping[str, str]:
        return {CHALLENGER: version}

    def next(self, trial: Trial, evidence: Evidence, now: datetime) -> Action:
        wins = evidence.outcomes.wins if isinstance(evidence.outcomes, Preference) else Wins()
        decided, found = wins.challenger + wins.champion, wins.preference(self.level)
        share = f"{found.estimate:.1%} ({found.low:.1%} to {found.high:.1%})"
        report = f"preferred by {share} of the weighed clicks of {decided} sessions"
        if decided >= self.min_samples and found.low > 0.5:
            return Action(self.then, f"it is {report}")
        if decided >= self.min_samples and found.high < 0.5:
            return Action("roll_back", f"it is {report}")
        if seconds(trial.started_at, now) > self.max_s:
            return Action("stop", f"no verdict after {self.max_s:g} s: {report}")
        return Action("hold", report)


@dataclass(frozen=True, kw_only=True)
class BanditTest(Common):
    """Each request goes to the version that earns most as far as is known, and to each of them with a chance of
    `min_share` at least. Units are not sticky, and a request is answered by one version.

    policy: of `conf/policy/`: thompson, ucb, epsilon_greedy, and with a context lin_ucb or linear_thompson, for which
    `features` names the request's features (none: the champion's numbers, and its categories where there are few).
    versions: to be tried beside the one under trial. The reward is the number of guardrails.reward_type feedback, or
    minus the loss of the label, down to `max_loss` (null: 5 nats, and no bound for a squared error). Labels that come
    later than `label_horizon` after the answer are not learned from.

    When the chance that one of the versions earns most is `level`, with `min_units` labelled answers of it, of the
    champion and of the version under trial and after `min_s` seconds, the roll-out ends: with the version promoted,
    or, if it is the champion, with the one under trial rolled back. After `max_s` seconds `at_end` says what to do.
    """

    kind: ClassVar[str] = BANDIT
    policy: Policy = field(default_factory=Thompson)
    features: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    min_share: float = 0.02
    level: float = 0.99
    min_units: int = 100
    min_s: float = 60.0
    max_s: float = 2_592_000.0
    max_loss: float | None = None
    label_horizon: str = "7d"
    at_end: Then = "stop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.versions)) < len(self.versions):
            raise ConfigError(f"rollout.versions has one twice: {list(self.versions)}")
        arms = 2 + len(self.versions)
        if not 0 < self.min_share <= 1 / arms:
            raise ConfigError(
                f"rollout.min_share must be above 0 and at most 1/{arms} for {arms} arms, not {self.min_share}"
            )
        if not 0.5 < self.level < 1:
            raise ConfigError(f"rollout.level must be between 0.5 and 1, not {self.level}")
        if self.min_units < 1:
            raise ConfigError(f"rollout.min_units must be 1 or more, not {self.min_units}")
        if self.max_loss is not None and not self.max_loss > 0:
            raise ConfigError(f"rollout.max_loss must be above 0, or null, not {self.max_loss}")
        if self.features and not self.policy.contextual:
            raise ConfigError(f"rollout.features: {type(self.policy).__name__} has no context: choose lin_ucb")
        if self.guardrails.max_metric_shift:
            raise ConfigError(
                "rollout.guardrails.max_metric_shift compares plain means, which a bandit's traffic does not allow: "
                "leave it empty, or name the metric as guardrails.reward_type feedback"
            )
        if self.at_end not in get_args(Then):
            raise ConfigError(f"rollout.at_end must be {' or '.join(get_args(Then))}, not {self.at_end!r}")
        parse_duration(self.label_horizon)

    @property
    def arms(self) -> tuple[str, ...]:
        """Roles, the champion's first."""
        return (CHAMPION, CHALLENGER, *(f"{CHALLENGER}-{i}" for i in range(2, 2 + len(self.versions))))

    @property
    def floored(self) -> Policy:
        return with_floor(self.policy, self.min_share, len(self.arms))

    def shares(self, step: int) -> Mapping[str, float]:
        """Of the beginning: snapshots say how they go on."""
        if step < 0:
            return {CHAMPION: 1.0, **dict.fromkeys(self.arms[1:], 0.0)}
        return dict.fromkeys(self.arms, 1.0 / len(self.arms))

    def roles(self, step: int, version: str) -> Mapping[str, str]:
        return dict(zip(self.arms[1:], (version, *self.versions), strict=True))

    def next(self, trial: Trial, evidence: Evidence, now: datetime) -> Action:
        roles, found = self.roles(trial.step, trial.version), evidence.outcomes
        if broken := self._broken(evidence, trial.step):
            arm, one = broken
            return Action("stop", f"{roles[arm]}, tried beside it, breaks a guardrail: {one.text}")
        report = "nothing is learned yet"
        if isinstance(found, BanditOutcomes) and found.best:
            arm = max(found.best, key=lambda name: found.best[name])
            labelled = min(found.labelled[name] for name in {CHAMPION, CHALLENGER, arm})
            name = "the champion" if arm == CHAMPION else roles[arm]
            report = f"{name} earns most with a chance of {found.best[arm]:.2%}, of {labelled} labels or more each"
            enough = labelled >= self.min_units and seconds(trial.since, now) >= self.min_s
            if enough and found.best[arm] >= self.level:
                if arm == CHAMPION:
                    return Action("roll_back", report)
                return Action("promote", report, version=roles[arm])
        if seconds(trial.started_at, now) > self.max_s:
            return Action(self.at_end, f"no verdict after {self.max_s:g} s: {report}")
        return Action("hold", report)

    def _broken(self, evidence: Evidence, step: int) -> tuple[str, Reading] | None:
        """The first guardrail that a version beside the one under trial breaks."""
        seen, outcomes = evidence.seen, evidence.outcomes
        for arm in self.arms[2:]:
            its = outcomes.of(arm) if isinstance(outcomes, BanditOutcomes) else None
            ours, theirs = seen.arm(arm, step), seen.arm(CHAMPION, step)
            found = readings(self.guardrails, ours, theirs, seen.arm(CHAMPION), its, seen.ordered)
            if broken := [one for one in found if one.breach]:
                return arm, broken[0]
        return None


def tally_of(experiment: Experiment, outcomes: Outcomes) -> Tally:
    """What the experiment has seen, period by period."""
    tally = Tally(experiment)
    for index, period in enumerate(outcomes.periods):
        if index:
            tally.begin(experiment.shares)
        for arm in experiment.shares:
            tally.expose(arm, period.exposed.get(arm, 0))
            for metric, moments in period.moments.get(arm, {}).items():
                if metric in {m.name for m in experiment.metrics}:
                    tally.observe(arm, metric, moments)
    return tally
