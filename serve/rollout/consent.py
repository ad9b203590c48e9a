"""What becomes of an automatic roll-back, as the strategy that made the version says: `approval.roll_back`."""

from __future__ import annotations

from cltrain.approval import roll_back_policy
from cltrain.registry import Registry
from cltrain.registry.deployment import Trial
from cltrain.registry.permissions import ROLL_BACK
from serve.rollout.machine import Action


class Consent:
    """Stands between what a look decided and what is done."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, Action] = {}

    def of(self, trial: Trial, action: Action) -> Action:
        """`action`, unless it is a roll-back that is not done by itself: one that awaits approval stops the roll-out,
        and one that people are only told of leaves it where it is. Raises `StoreError`."""
        if action.do != "roll_back":
            return action
        if trial.id not in self._known:
            self._known = {trial.id: self._agreed(trial, action)}
        return self._known[trial.id]

    def _agreed(self, trial: Trial, action: Action) -> Action:
        policy = roll_back_policy(self._registry.settings(trial.version))
        said = policy.may_roll_back(self._registry, trial.id, trial.version, action.reason)
        if said == "approve":
            subject = f"{ROLL_BACK}{trial.id}"
            return Action("stop", f"{action.reason}; its withdrawal awaits approval: cltrain approve {subject}")
        if said == "notify":
            return Action("hold", f"{action.reason}; people were told, and nothing is done: POST /rollouts/halt")
        return action
