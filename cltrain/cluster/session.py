"""Where the job runs: this process alone, a Ray of its own, or a cluster that is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cltrain.cluster.local import LocalRunner
from cltrain.errors import ConfigError
from cltrain.records import Json
from cltrain.registry import Store


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """workers: processes of the warm training group; 0 trains in the driver's process. min_workers: how few may go on,
    after a loss and until there is room for all again (None: no fewer); an update that was under way begins again, with
    those that are there, and one waits while there is no room for `min_workers`. cpus_per_worker, gpus_per_worker: what
    Ray reserves for each. threads_per_worker: of torch; the same number of workers and threads gives the same bits.
    idle_s: seconds after which an idle group gives its workers back. address: of a running cluster; None starts a Ray
    here, or takes RAY_ADDRESS."""

    workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1
    idle_s: float | None = None
    address: str | None = None
    num_cpus: int | None = None
    dashboard: bool = True

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"cluster.workers must be 0 (train in this process) or more, not {self.workers}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ConfigError(
                f"cluster.min_workers must be from 1 to cluster.workers={self.workers}, or null for all of them, not "
                f"{self.min_workers}"
            )
        if self.threads_per_worker < 1:
            raise ConfigError(f"cluster.threads_per_worker must be 1 or more, not {self.threads_per_worker}")
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise ConfigError("cluster.cpus_per_worker and cluster.gpus_per_worker must be 0 or more")
        if self.workers > 1 and 0 < self.gpus_per_worker < 1:
            raise ConfigError(
                f"cluster.gpus_per_worker must be 0 or 1 with several workers, not {self.gpus_per_worker}: NCCL wants "
                "a GPU for each"
            )

    def require_room(self, job: str, cpus: float, gpus: float) -> None:
        """Raise `ConfigError`, before anything starts, for a trial of `job` that a Ray of our own could never run: Tune
        would wait for ever for what is not there."""
        if self.address or os.environ.get("RAY_ADDRESS"):
            return
        import torch

        there = (("cpus", cpus, self.num_cpus or os.cpu_count() or 1), ("gpus", gpus, torch.cuda.device_count()))
        for what, asked, most in there:
            if asked > most:
                raise ConfigError(f"{job}.{what}_per_trial must be {most} or less, not {asked}: there are no more")

    @contextmanager
    def session(self, needed: bool, about: dict[str, str]) -> Iterator[str | None]:
        """A Ray for the block, if it is `needed` or the workers are; gives the dashboard's address, if there is one."""
        if not needed and not self.workers:
            yield None
            return
        import ray

        from cltrain.cluster.warm import ENVIRONMENT

        for name, value in {
            **ENVIRONMENT,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }.items():
            os.environ.setdefault(name, value)
        if ray.is_initialized():
            yield None
            return
        address = self.address or os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {} if address else {"num_cpus": self.num_cpus, "include_dashboard": self.dashboard}
        context = ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            job_config=ray.job_config.JobConfig(metadata=about),
            **own,
        )
        try:
            yield f"http://{context.dashboard_url}" if context.dashboard_url else None
        finally:
            ray.shutdown()

    @contextmanager
    def runner(self, store: Store, engine: Json | None = None) -> Iterator[object]:
        """What trains, for the block; `engine` are settings of the group `engine`."""
        root = str(store.to_json()["root"])
        if not self.workers:
            device = "cuda" if self.gpus_per_worker else "cpu"
            yield LocalRunner(root=root, threads=self.threads_per_worker, device=device, engine=engine)
            return
        from cltrain.cluster.warm import WarmGroup

        group = WarmGroup(
            root=root,
            workers=self.workers,
            min_workers=self.min_workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
            threads=self.threads_per_worker,
            idle_s=self.idle_s,
            engine=engine,
        )
        group.start()
        try:
            yield group
        finally:
            group.close()
