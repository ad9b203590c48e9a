"""Methods: what protects an update against forgetting."""

from cltrain.methods.agem import AGEM
from cltrain.methods.base import Absorbed, Joined, Method, MethodState
from cltrain.methods.combined import Combined
from cltrain.methods.der import DER, DERpp
from cltrain.methods.ewc import EWC
from cltrain.methods.finetune import Finetune
from cltrain.methods.from_scratch import FromScratch
from cltrain.methods.gdumb import GDumb
from cltrain.methods.l2sp import L2SP
from cltrain.methods.lwf import LwF
from cltrain.methods.mas import MAS
from cltrain.methods.replay import Replay
from cltrain.methods.si import SI

__all__ = [
    "AGEM",
    "DER",
    "EWC",
    "L2SP",
    "MAS",
    "SI",
    "Absorbed",
    "Combined",
    "DERpp",
    "Finetune",
    "FromScratch",
    "GDumb",
    "Joined",
    "LwF",
    "Method",
    "MethodState",
    "Replay",
]
