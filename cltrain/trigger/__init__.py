"""Triggers: now, or not yet, with the evidence. A trigger decides; something else acts."""

from cltrain.trigger.base import Evidence, Trigger
from cltrain.trigger.composite import All, Any, AtLeast
from cltrain.trigger.manual import Manual
from cltrain.trigger.time import Time
from cltrain.trigger.volume import Volume

__all__ = ["All", "Any", "AtLeast", "Evidence", "Manual", "Time", "Trigger", "Volume"]
