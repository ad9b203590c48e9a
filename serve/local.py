"""Serving beside a job: started by it, followed by it, and stopped with it."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from cltrain.config import locate
from cltrain.errors import ConfigError, ServingError
from cltrain.online.policy import Threshold, Weights
from cltrain.parts import Alert
from cltrain.records import RollOut
from cltrain.registry import Registry, Store
from serve.control import APP, CONTROLLER
from serve.endings import tell_of as tell_of
from serve.policy.policy_layer import BINARY, Reward, require_binary
from serve.policy.reranking import require_click_type
from serve.rollout.bandit import BANDIT, require_log
from serve.rollout.controller import settings_of
from serve.rollout.machine import RollOutKind
from serve.rollout.preference import INTERLEAVE, require_task
from serve.serving import Serving
from serve.serving import get_json as get_json
from serve.settings import ADMIN_TOKEN_ENV, LogSettings, ServerSettings, admin_token_digest
from serve.traffic import Traffic, other_rows, sample_rows, summarise

log = logging.getLogger(__name__)
PORT_WAIT_S = 5.0


@dataclass(kw_only=True)
class LocalServing(Serving):
    """The application on the Ray that is running, reached by HTTP as any client would.

    host, port: where it listens; port 0 takes one that is free. grpc_port: where `host` also answers gRPC, as
    serve/http/proto/cltrain.proto says, or null.
    replicas, num_cpus, num_gpus: how many, and CPUs and share of a GPU of each, from 0 (the CPU computes) to 1.
    max_replicas: up to how many Serve may start while each has more
    than target_ongoing_requests under way on average, for upscale_delay_s seconds; null keeps it at `replicas`, which
    is the least otherwise. They are fewer again after ten minutes with less to do.
    poll_s: seconds between two looks at the registry, so how long a swap takes beside the loading.
    max_batch_rows, max_body_bytes: of one request at most. max_requests_per_s: of each replica, before requests are
    refused with 429; null has no limit. max_ongoing_requests, max_queued_requests: what a replica works on, and what
    waits for one, before requests are refused with 503.
    memory_mb: of the weights that a replica holds at once; null has no limit. new_features: whether a challenger may
    read features that the champion does not. shadow_capacity, shadow_max_age_s: copies of requests that wait for a
    shadow in each replica at most, and for how long.
    requests_per_window, concurrency: replayed requests of a round, and how many at a time. requests_per_roll_out: how
    many may follow while a roll-out needs traffic to go on. timeout_s: of one request.
    confirm_timeout_s: how long the replicas may take to follow a swap.
    admin_token_env: environment variable, where the job starts, with the token for the admin routes.
    alert: a function of your own, package.module.function(title, text), that is called when a roll-out is taken back or
    stopped, as W&B is; null calls none.
    policy: how the threshold of a binary model follows what its decisions earn, or weights of features on /rank follow
    clicks; null leaves them alone.
    """

    needs_ray: ClassVar[bool] = True
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    replicas: int = 1
    max_replicas: int | None = None
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 10.0
    num_cpus: float = 0.2
    num_gpus: float = 0.0
    poll_s: float = 0.1
    max_batch_rows: int = 1000
    max_body_bytes: int = 16_000_000
    max_requests_per_s: float | None = None
    max_ongoing_requests: int = 64
    max_queued_requests: int = 1024
    memory_mb: float | None = None
    new_features: bool = False
    shadow_capacity: int = 256
    shadow_max_age_s: float = 5.0
    requests_per_window: int = 40
    requests_per_roll_out: int = 100_000
    concurrency: int = 4
    timeout_s: float = 30.0
    confirm_timeout_s: float = 30.0
    admin_token_env: str = ADMIN_TOKEN_ENV
    alert: str | None = None
    policy: Threshold | Weights | None = None
    log: LogSettings = field(default_factory=LogSettings)
    url: str | None = field(default=None, init=False)
    grpc_address: str | None = field(default=None, init=False)
    _spread_s: float = field(default=2.0, init=False, repr=False)
    _replay: Traffic | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"serve.port must be between 0 (any that is free) and 65535, not {self.port}")
        if self.grpc_port is not None and not 0 <= self.grpc_port < 65536:
            raise ConfigError(
                f"serve.grpc_port must be between 0 (any that is free) and 65535, or null for no gRPC, "
                f"not {self.grpc_port}"
            )
        if self.port and self.port == self.grpc_port:
            raise ConfigError(f"serve.grpc_port must be another than serve.port={self.port}")
        for name in ("replicas", "max_batch_rows", "max_ongoing_requests", "max_queued_requests", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"serve.{name} must be 1 or more, not {getattr(self, name)}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(
                f"serve.max_replicas must be serve.replicas={self.replicas} or more, or null for no autoscaling, "
                f"not {self.max_replicas}"
            )
        if not self.target_ongoing_requests > 0:
            raise ConfigError(
                f"serve.target_ongoing_requests must be above 0 for each replica, not {self.target_ongoing_requests}"
            )
        if not 0 <= self.num_gpus <= 1:
            raise ConfigError(f"serve.num_gpus must be between 0 and 1 for each replica, not {self.num_gpus}")
        for name in ("poll_s", "timeout_s", "confirm_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"serve.{name} must be above 0 seconds, not {getattr(self, name)}")
        for name in ("num_cpus", "upscale_delay_s", "requests_per_window", "requests_per_roll_out"):
            if getattr(self, name) < 0:
                raise ConfigError(f"serve.{name} must be 0 or more, not {getattr(self, name)}")
        if self.alert is not None and not callable(locate(self.alert, "serve.alert")):
            raise ConfigError(f"serve.alert={self.alert} must be a function of a title and a text")
        if isinstance(self.policy, Threshold):
            Reward.of(self.policy)
        if isinstance(self.policy, Weights):
            require_click_type(self.policy.click_type)
        self.settings(Store(root="."), "model")  # what a replica would refuse

    def settings(self, store: Store, model: str) -> dict[str, Any]:
        """What each replica is told; raises `ConfigError` for what it would refuse."""
        settings = ServerSettings(
            store=store.to_json(),
            model=model,
            log=self.log,
            poll_s=self.poll_s,
            max_batch_rows=self.max_batch_rows,
            max_body_bytes=self.max_body_bytes,
            max_requests_per_s=self.max_requests_per_s,
            memory_mb=self.memory_mb,
            new_features=self.new_features,
            device="cuda" if self.num_gpus else "cpu",
            shadow_capacity=self.shadow_capacity,
            shadow_max_age_s=self.shadow_max_age_s,
            admin_token_sha256=admin_token_digest(self.admin_token_env),
            admin_token_env=self.admin_token_env,
        )
        return asdict(settings)

    def check(self, kind: RollOutKind | None = None, task: str | None = None) -> None:
        """Raise `ServingError` when the port is taken, before anything is started, and `ConfigError` for a kind of
        roll-out that models of `task` cannot have.

        A job that was killed leaves its server behind for some seconds: the same command, started at once, waits for
        it."""
        super().check(kind, task)
        if kind is not None and kind.kind in (BANDIT, INTERLEAVE):
            require_log(self.log, f"rollout={kind.kind}")
        if isinstance(self.policy, Weights):
            require_task(task or "", "serve.policy=weights")
            require_log(self.log, "serve.policy=weights")
        elif self.policy is not None and task not in (None, BINARY):
            raise ConfigError(f"serve.policy makes labels of a binary model's scores, and the task is {task}")
        deadline = time.monotonic() + PORT_WAIT_S
        while True:
            try:
                self._free_ports()
                return
            except ServingError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def start(self, store: Store, model: str, alert: Alert | None = None) -> None:
        """Start the application for the champion of `model`, now or as soon as there is one. Ray must be initialised.
        `alert` is told, beside the function of the settings, when a roll-out is taken back or stopped.

        Raises `ServingError` when the port is taken, and `ConfigError` for a `policy` of a model that is not binary and
        for more GPUs than Ray has, before anything is started.
        """
        import ray
        from ray import serve

        from serve.app import application, control
        from serve.http.grpc_api import answers
        from serve.proxy import environment

        if isinstance(self.policy, Threshold) and (champion := Registry(store, model).champion()) is not None:
            require_binary(Registry(store, model), champion.version)
        wanted, there = self.num_gpus * self.replicas, ray.cluster_resources().get("GPU", 0.0)
        if wanted > there:
            raise ConfigError(f"serve.num_gpus={self.num_gpus:g} wants {wanted:g} GPUs in all, and Ray has {there:g}")
        port, grpc_port = self._free_ports()
        grpc_address = f"{_bracketed(self.host)}:{grpc_port}" if grpc_port else None
        app = application(
            self.settings(store, model),
            replicas=self.replicas,
            autoscaling=self._autoscaling(),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            max_ongoing_requests=self.max_ongoing_requests,
            max_queued_requests=self.max_queued_requests,
        )
        controller = control(
            self.settings(store, model),
            replicas=self.replicas,
            policy=None if self.policy is None else settings_of(self.policy),
            alert=self.alert,
        )
        with _quiet():
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": self.host, "port": port, "request_timeout_s": self.timeout_s},
                controller_options={"runtime_env": {"env_vars": environment(grpc_address, self.max_body_bytes)}},
                logging_config={"log_level": "ERROR", "enable_access_log": False},
            )
            try:
                serve.run_many(
                    [serve.RunTarget(app, APP, "/"), serve.RunTarget(controller, CONTROLLER, route_prefix=None)]
                )
            except Exception as error:
                serve.shutdown()
                raise ServingError(f"the serving application did not start: {error}") from error
        self.url = f"http://{_reachable(self.host)}:{port}"
        self.grpc_address = f"{_reachable(self.host)}:{grpc_port}" if grpc_port else None
        if self.grpc_address is not None and not answers(self.grpc_address, within_s=PORT_WAIT_S):
            self.stop()
            raise ServingError(f"gRPC does not answer at {grpc_address}: pass serve.grpc_port=N for another port")
        self._begin(Registry(store, model), alert)

    def stop(self) -> None:
        """Stop what `start` started; the logs are closed and complete after it. Safe to call at any time."""
        super().stop()
        if self.url is not None:
            from ray import serve

            self.url = self.grpc_address = None
            with _quiet():
                serve.shutdown()

    def _autoscaling(self) -> dict[str, Any] | None:
        if self.max_replicas is None:
            return None
        return {
            "min_replicas": self.replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
            "upscale_delay_s": self.upscale_delay_s,
        }

    def traffic(self, rows: pa.Table, seed: int) -> Traffic:
        """Replay a sample of an event table while the block runs; it is paced by how long the last block took."""
        self._replay = _Paced(
            url=self._running(),
            rows=sample_rows(rows, self.requests_per_window, seed),
            spread_s=self._spread_s,
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            spare=lambda: other_rows(rows, self.requests_per_window, seed, self.requests_per_roll_out),
            serving=self,
        )
        return self._replay

    def _free_ports(self) -> tuple[int, int | None]:
        """For HTTP and for gRPC; raises `ServingError` when one is taken."""
        port = free_port(self.host, self.port)
        return port, None if self.grpc_port is None else free_port(self.host, self.grpc_port, "serve.grpc_port")


@dataclass
class _Paced(Traffic):
    """Traffic that tells the next one how long its block took."""

    serving: LocalServing | None = None

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.serving is not None:
            self.serving._spread_s = self.block_s


@dataclass(frozen=True, kw_only=True)
class NoServing:
    """Nothing is served: the loop runs without a server and without Ray Serve."""

    needs_ray: ClassVar[bool] = False
    url: None = field(default=None, init=False)

    def check(self, kind: RollOutKind | None = None, task: str | None = None) -> None:
        """Raise `ConfigError` for a roll-out that needs traffic."""
        if kind is not None and (kind.kind != "swap" or getattr(kind, "watch_s", 0.0) > 0):
            raise ConfigError(
                f"rollout={kind.kind} needs traffic to go by: set serve=local or running, or rollout=swap"
            )

    def start(self, store: Store, model: str, alert: Alert | None = None) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def traffic(self, rows: pa.Table, seed: int) -> AbstractContextManager[NoTraffic]:
        return contextlib.nullcontext(NoTraffic())

    def roll_out(
        self, registry: Registry, version: str, previous: str | None, kind: RollOutKind, reason: str
    ) -> RollOut:
        """A swap in the registry."""
        epoch = registry.promote(version, by="loop", reason=reason, expected=previous)
        return RollOut(kind="swap", version=version, previous=previous, epoch=epoch)

    def confirm(self, version: str, epoch: int) -> None:
        """There is nobody to follow."""
        return None


@dataclass(frozen=True)
class NoTraffic:
    result: dict[str, Any] = field(default_factory=lambda: summarise([], 0))


def free_port(host: str, port: int, setting: str = "serve.port") -> int:
    """The port, or one that is free for 0. Raises `ServingError` when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"port {port} of {host} is in use or not allowed ({error.strerror}): pass {setting}=N, or, where an "
                "application of this store answers there already, serve=running"
            ) from error
        return probe.getsockname()[1]


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, _bracketed(host))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Serve tells at length how it starts; its errors stay."""
    loggers = [logging.getLogger(name) for name in ("ray.serve", "ray.serve._private")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
