"""What a serving process is told: where the registry is, and never which version to serve."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

from cltrain.errors import ConfigError
from cltrain.registry import Store

ADMIN_TOKEN_ENV = "CLTRAIN_ADMIN_TOKEN"


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """How predictions and feedback are logged.

    rate: share of answered rows that are logged, by a hash of the request id; feedback is always logged.
    flush_s: seconds between two synced writes of predictions, so what a crash can lose.
    capacity_rows: rows that wait for the writer at most; more are shed and counted.
    rotate_rows, rotate_s: a segment ends at this many rows or seconds; a remote store gets it then.
    """

    rate: float = 1.0
    flush_s: float = 0.5
    capacity_rows: int = 65_536
    rotate_rows: int = 200_000
    rotate_s: float = 300.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"serve.log.rate is a share between 0 and 1, not {self.rate}")
        for name in ("flush_s", "rotate_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"serve.log.{name} must be above 0 seconds, not {getattr(self, name)}")
        for name in ("capacity_rows", "rotate_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"serve.log.{name} must be 1 or more, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """All that one replica needs to know.

    poll_s: seconds between two looks at the registry. max_batch_rows: rows of one request at most.
    admin_token_sha256: digest of the token that /promote and /rollback ask for; None closes them.
    """

    store: dict[str, Any]
    model: str
    log: LogSettings = field(default_factory=LogSettings)
    poll_s: float = 0.1
    max_batch_rows: int = 1000
    admin_token_sha256: str | None = None
    admin_token_env: str = ADMIN_TOKEN_ENV

    def __post_init__(self) -> None:
        if not self.poll_s > 0:
            raise ConfigError(f"serve.poll_s must be above 0 seconds, not {self.poll_s}")
        if self.max_batch_rows < 1:
            raise ConfigError(f"serve.max_batch_rows must be 1 or more, not {self.max_batch_rows}")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ServerSettings:
        return cls(**{**value, "log": LogSettings(**value.get("log", {}))})

    def open_store(self) -> Store:
        return Store(**self.store)


def admin_token_digest(env: str) -> str | None:
    """sha256 of the token in environment variable `env`, so that the token itself is in no cluster's settings."""
    token = os.environ.get(env)
    return hashlib.sha256(token.encode()).hexdigest() if token else None
