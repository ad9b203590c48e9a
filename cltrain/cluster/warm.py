"""A warm Ray Train worker group: one long-lived `TorchTrainer.fit` that takes one command after another, updates and
rows to score.

A fresh fit costs 15–25 s; a command to a warm group some 60 ms. Ray Train keeps the workers alive, restarts them
after a loss, and its controller consumes the reports; a restarted worker finds the command that was not done in the
mailbox."""

from __future__ import annotations

import concurrent.futures
import threading
import traceback
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cltrain.cluster.execute import obey, payload_of
from cltrain.cluster.mailbox import Mailbox, Report
from cltrain.cluster.score import gather, score_payload
from cltrain.errors import CltrainError, ConfigError, UpdateError
from cltrain.evaluate.sample import Sample
from cltrain.evaluate.spread import ScoreRequest
from cltrain.records import Challenger, Json, UpdateRequest, from_json
from cltrain.storage import Storage

# Read by Ray Train in the driver and in the controller: they must be set before ray.init starts a local cluster.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",  # the poll that brings a report to the controller
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # no room for the workers: an error, in the end
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers keep their working directory
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",  # a rank stuck in a collective holds up a restart
}

LAST_WORD_S = 2.0  # the mailbox outlives the fit, and may still answer


class Settle(ray.train.UserCallback):
    """Runs in the controller, and waits for the mailbox: what was reported is settled before a group can restart."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        ray.get(self._mailbox.done.remote(metrics[0]["command"], metrics))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        failures = {rank: str(error) for rank, error in worker_exceptions.items()}
        if ray.get(self._mailbox.lost.remote(failures)):
            raise RuntimeError(f"workers were lost again and again: {failures}")


def train_loop(config: dict[str, Any]) -> None:
    """What every rank runs: commands until there are no more."""
    mailbox = config["mailbox"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    number: int | None = None
    while (command := ray.get(mailbox.next.remote(rank, number))) is not None:
        number, payload = command
        report: Report = {"command": number, "rank": rank, "result": None, "error": None, "kind": None}
        try:
            report["result"] = obey(payload, rank, world)
        except CltrainError as error:
            report |= {"error": str(error), "kind": type(error).__name__}
        except Exception:
            report["error"] = traceback.format_exc()
        if world > 1:  # report() is a barrier: do not enter it while another rank is stuck
            ended = mailbox.end.remote(report, world)
            if report["error"] and not ray.get(ended):
                raise RuntimeError(f"rank {rank} failed in command {number} and the others did not come to its end")
        ray.train.report(report)


@dataclass(kw_only=True)
class WarmGroup:
    """Takes one command at a time. After an idle time-out the next one starts it again. With `min_workers` it also
    works with fewer workers, when there is no room for all of them."""

    root: str
    workers: int
    min_workers: int | None = None
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0.0
    threads: int = 1
    idle_s: float | None = None
    engine: Json | None = None
    _mailbox: Any = field(default=None, init=False)
    _commands: int = field(default=0, init=False)
    _fit: concurrent.futures.Future | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin to start the workers, and return at once."""
        if self._fit is not None:
            return
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here)  # not on a node that may be lost
        self._mailbox = actor.remote(self.idle_s)
        resources = {"CPU": self.cpus_per_worker} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})
        workers = self.workers if self.min_workers is None else (self.min_workers, self.workers)
        trainer = ray.train.torch.TorchTrainer(
            train_loop,
            train_loop_config={"mailbox": self._mailbox},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,  # type: ignore[arg-type]  # the annotations are of Train V1
                resources_per_worker=resources,
                use_gpu=bool(self.gpus_per_worker),
            ),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                storage_path=Storage(self.root).uri("ray_train"),
                failure_config=ray.train.FailureConfig(max_failures=-1, controller_failure_limit=2),  # type: ignore[call-arg]
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                callbacks=[Settle(self._mailbox)],  # type: ignore[list-item]
            ),
        )
        self._fit = concurrent.futures.Future()
        self._thread = threading.Thread(target=_run_fit, args=(trainer, self._fit), name="warm-group", daemon=True)
        self._thread.start()

    def update(self, request: UpdateRequest) -> Challenger:
        """Train on the workers. Raises `UpdateError` with what the ranks said, or when the group cannot be started."""
        device = "cuda" if self.gpus_per_worker else "cpu"
        payload = payload_of(request, self.root, self.threads, device, self.engine)
        return from_json(Challenger, self._command(payload)[0]["result"])

    def score(self, request: ScoreRequest) -> dict[int, Sample]:
        """The answers by number of the window, its rows in their order: each worker scores its share, on its CPU, as
        the driver would. Raises `UpdateError` as `update` does."""
        reports = self._command(score_payload(request, self.root, self.threads))
        return gather(Storage(self.root), request, [r["result"] for r in reports])

    def _command(self, payload: Json) -> list[Report]:
        """What all ranks reported of a command that went well."""
        self.start()
        self._commands += 1
        if not self._get(self._mailbox.put.remote(self._commands, payload)):
            self.close()
            self.start()
            self._get(self._mailbox.put.remote(self._commands, payload))
        reports = self._get(self._mailbox.result.remote(self._commands))
        if failed := [r for r in reports if r["error"]]:
            said = "\n".join(f"rank {r['rank']}: {r['error']}" for r in failed)
            raise (ConfigError if failed[0]["kind"] == "ConfigError" else UpdateError)(said)
        return reports

    def close(self, timeout_s: float = 30.0) -> None:
        """Let the workers go."""
        if self._fit is None or self._thread is None:
            return
        if not self._fit.done():
            self._get(self._mailbox.close.remote())
        self._thread.join(timeout_s)
        ray.kill(self._mailbox)
        self._fit = self._thread = None

    def _get(self, reference: Any) -> Any:
        """`ray.get` that ends with the error of the fit, if the fit ends first."""
        assert self._fit is not None
        future = reference.future()
        concurrent.futures.wait([future, self._fit], return_when=concurrent.futures.FIRST_COMPLETED)
        try:
            return future.result(timeout=None if future.done() else LAST_WORD_S)
        except concurrent.futures.TimeoutError:
            error = self._fit.exception()
        raise UpdateError(
            f"the worker group has ended: {error or 'it was closed'}; check cluster.workers and resources"
        )


def _run_fit(trainer: Any, future: concurrent.futures.Future) -> None:
    try:
        future.set_result(trainer.fit())
    except BaseException as error:
        future.set_exception(error)
