"""What a serving process is told: where the registry is, and never which version to serve."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cltrain.clock import parse_duration
from cltrain.config import locate
from cltrain.errors import ConfigError
from cltrain.registry import Store
from serve.logs.strata import rule_of

ADMIN_TOKEN_ENV = "CLTRAIN_ADMIN_TOKEN"


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """How predictions and feedback are logged.

    keep: `sampled` logs a share of the answered rows, which is all of them while `rate` is 1; `full` logs all, whatever
    the rates; `profiles` logs no row, but only counts and sums of its columns. Feedback is always logged.
    rate: share of units, by a hash of the unit id (a request without one is a unit of its own), whose rows are logged
    together. rates: of strata that deserve more, such as `{arm is challenger:
    1.0, score below 0.6: 0.5, features.country is NZ: 1.0}`; the highest that fits counts, and each row says its
    `weight`, one over it.
    metrics: functions of your own of a logged row, `{name: package.module.function}`, kept by version in windows of
    `window`, as profiles are, over all answered rows.
    retain: age, such as 30d, after which segments and profiles are deleted; null keeps them. It should be longer than
    labels take.
    flush_s: seconds between two synced writes of predictions, so what a crash can lose.
    capacity_rows: rows that wait for the writer at most; more are shed and counted.
    rotate_rows, rotate_s: a segment ends at this many rows or seconds; a remote store gets it then.
    """

    keep: Literal["full", "sampled", "profiles"] = "sampled"
    rate: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    window: str = "1m"
    retain: str | None = None
    flush_s: float = 0.5
    capacity_rows: int = 65_536
    rotate_rows: int = 200_000
    rotate_s: float = 300.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"serve.log.rate is a share between 0 and 1, not {self.rate}")
        if self.keep not in ("full", "sampled", "profiles"):
            raise ConfigError(f"serve.log.keep must be full, sampled or profiles, not {self.keep!r}")
        for text, rate in self.rates.items():
            rule_of(text)
            if not 0 <= rate <= 1:
                raise ConfigError(f"serve.log.rates.{text} is a share between 0 and 1, not {rate}")
        for name, place in self.metrics.items():
            if not callable(locate(place, f"serve.log.metrics.{name}")):
                raise ConfigError(f"serve.log.metrics.{name}={place} must be a function of a logged row")
        parse_duration(self.window)
        if self.retain is not None:
            parse_duration(self.retain)
        for name in ("flush_s", "rotate_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"serve.log.{name} must be above 0 seconds, not {getattr(self, name)}")
        for name in ("capacity_rows", "rotate_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"serve.log.{name} must be 1 or more, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """All that one replica needs to know.

    poll_s: seconds between two looks at the registry. max_batch_rows, max_body_bytes: of one request at most.
    max_requests_per_s: of this replica, above which requests are refused with 429; None has no limit.
    memory_mb: of the weights that it holds at once; None has no limit. evidence_s: seconds between two reports of what
    it saw of a roll-out. shadow_capacity, shadow_max_age_s: copies of requests that wait for a shadow at most, and for
    how long; others are shed. new_features: whether a challenger may read features that the champion does not.
    device: cpu or cuda, which computes the answers, a shadow's too.
    admin_token_sha256: digest of the token that the admin routes ask for; None closes them.
    """

    store: dict[str, Any]
    model: str
    log: LogSettings = field(default_factory=LogSettings)
    poll_s: float = 0.1
    max_batch_rows: int = 1000
    max_body_bytes: int = 16_000_000
    max_requests_per_s: float | None = None
    memory_mb: float | None = None
    evidence_s: float = 0.2
    shadow_capacity: int = 256
    shadow_max_age_s: float = 5.0
    new_features: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    admin_token_sha256: str | None = None
    admin_token_env: str = ADMIN_TOKEN_ENV

    def __post_init__(self) -> None:
        for name in ("poll_s", "evidence_s", "shadow_max_age_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"serve.{name} must be above 0 seconds, not {getattr(self, name)}")
        for name in ("max_batch_rows", "max_body_bytes", "shadow_capacity"):
            if getattr(self, name) < 1:
                raise ConfigError(f"serve.{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("max_requests_per_s", "memory_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"serve.{name} must be above 0, or null for no limit, not {value}")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ServerSettings:
        return cls(**{**value, "log": LogSettings(**value.get("log", {}))})

    def open_store(self) -> Store:
        return Store(**self.store)


def admin_token_digest(env: str) -> str | None:
    """sha256 of the token in environment variable `env`, so that the token itself is in no cluster's settings."""
    token = os.environ.get(env)
    return hashlib.sha256(token.encode()).hexdigest() if token else None
