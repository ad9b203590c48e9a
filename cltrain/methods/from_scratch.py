"""Stateless retraining as a method: every update starts from nothing, on the history that recalibration uses."""

from __future__ import annotations

from dataclasses import dataclass

from cltrain.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class FromScratch(Method):
    stateful = False
