"""Every kind of roll-out by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.rollout.experiments import ABTest, BanditTest, Interleave
from serve.rollout.releases import Canary, Shadow, Swap

KINDS: Mapping[str, Any] = {kind.kind: kind for kind in (Swap, Canary, Shadow, ABTest, Interleave, BanditTest)}
