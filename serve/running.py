"""Serving that was started elsewhere, by `python -m jobs.serve`, and that goes on when the loop's job is over."""

from __future__ import annotations

import contextlib
import http.client
import re
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from cltrain.errors import ConfigError, ServingError
from cltrain.parts import Alert
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.control import read_note
from serve.local import NoTraffic
from serve.serving import Serving, get_json

ANSWER_S = 5.0  # that one answer may take
_URL = re.compile(r"http://[^/?#@]+")


@dataclass(kw_only=True)
class RunningServing(Serving):
    """The application that follows the registry of the loop's store already, with users of its own: nothing is
    replayed, and a roll-out goes by what they ask and say.

    url: where it answers. timeout_s: how long it may take to be ready when the loop starts. confirm_timeout_s: how
    long its replicas may take to follow a swap.
    """

    needs_ray: ClassVar[bool] = False
    url: str = "http://127.0.0.1:8000"
    timeout_s: float = 30.0
    confirm_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        self.url = self.url.removesuffix("/")
        if not _URL.fullmatch(self.url):
            raise ConfigError(f"serve.url must be like http://127.0.0.1:8000, not {self.url}")
        for name in ("timeout_s", "confirm_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"serve.{name} must be above 0 seconds, not {getattr(self, name)}")

    def start(self, store: Store, model: str, alert: Alert | None = None) -> None:
        """See that the application is there, is ready where there is a champion, and follows this registry. `alert` is
        told when a roll-out is taken back or stopped while the loop runs, beside whom the application tells. Raises
        `ServingError` that says what to do."""
        registry = Registry(store, model)
        registry.champion()  # a store that is new has its database now, which the application wants
        command = (
            f"python -m jobs.serve store.root={store.root} {'store.url=… ' if store.url else ''}model.name={model}"
        )
        deadline = time.monotonic() + self.timeout_s
        while (problem := self._problem(registry)) is not None:
            if time.monotonic() > deadline:
                raise ServingError(f"serve=running: {problem}: start `{command}`, or set serve.url to where it answers")
            time.sleep(0.2)
        self._begin(registry, alert)

    def traffic(self, rows: pa.Table, seed: int) -> AbstractContextManager[NoTraffic]:
        """Nothing is sent: users are there."""
        return contextlib.nullcontext(NoTraffic())

    def _problem(self, registry: Registry) -> str | None:
        """What keeps this from being the application of `registry`, by its model, its epoch, and the weights that its
        champion has here and there."""
        try:
            seen = get_json(self.url, "/versions", ANSWER_S)
            note = read_note(registry.store.storage, registry.model)
            if seen["model"] != registry.model:
                return f"{self.url} answers for the model {seen['model']}, and the loop is of {registry.model}"
            if note is None or note.is_stale:
                return f"no application acts on the roll-outs of {registry.store.root}"
            now, champion = Deployments(registry).epoch(), registry.champion()
            if seen["registry_epoch"] != now:
                return f"{self.url} follows another registry: it is at epoch {seen['registry_epoch']}, and not {now}"
            if champion is None:
                return None
            get_json(self.url, "/readyz", ANSWER_S)
        except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
            return f"{self.url} does not answer as it should ({error or type(error).__name__})"
        digests = {one["version"]: one["weights_digest"] for one in seen["resident"]}
        if (served := digests.get(champion.name)) != champion.weights_digest:
            what = "not loaded" if served is None else "another"
            return f"the champion {champion.name} of this store is {what} at {self.url}"
        return None
