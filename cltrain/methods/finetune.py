"""Continue on the new rows and nothing else: the baseline that forgets."""

from __future__ import annotations

from dataclasses import dataclass

from cltrain.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Finetune(Method):
    pass
