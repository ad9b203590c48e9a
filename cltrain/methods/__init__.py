"""Methods: what protects an update against forgetting."""

from cltrain.methods.base import Absorbed, Method, MethodState
from cltrain.methods.combined import Combined
from cltrain.methods.ewc import EWC
from cltrain.methods.finetune import Finetune
from cltrain.methods.from_scratch import FromScratch
from cltrain.methods.replay import Replay

__all__ = ["EWC", "Absorbed", "Combined", "Finetune", "FromScratch", "Method", "MethodState", "Replay"]
