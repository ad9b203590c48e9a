"""A mirror in Weights & Biases. Our store is the truth: nothing is ever read back from here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cltrain.errors import ConfigError
from cltrain.records import Json, Round, RunInfo
from cltrain.tracking.base import Table, Tracker
from cltrain.tracking.history import Entry, cost, entries, finite, losses, number, redacted, stateless_epochs

log = logging.getLogger(__name__)
FOLDERS = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")
QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


@dataclass(kw_only=True, eq=False)
class Wandb(Tracker):
    """One run for each loop, which a resumed job continues; its step is the number of the round. A measurement is a run
    with its tables, a chart of each, and its report.

    mode: auto is online where `WANDB_API_KEY` is set and offline elsewhere (`wandb sync` uploads it later).
    timeout_s: of the start and of the end of an online run, so that a loop never hangs where W&B cannot be
    reached; what was not uploaded stays in the run folder.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "cltrain"
    entity: str | None = None
    tags: tuple[str, ...] = ()
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        modes = ("auto", "online", "offline", "disabled")
        if self.mode not in modes:
            raise ConfigError(f"tracking.wandb.mode must be one of {', '.join(modes)}, not {self.mode!r}")
        if not self.project:
            raise ConfigError("tracking.wandb.project must not be empty; leave it out for cltrain")
        if not self.timeout_s > 0:
            raise ConfigError(f"tracking.wandb.timeout_s must be above 0, not {self.timeout_s}")
        self._run: Any = None
        self._info: RunInfo | None = None
        self._rounds: list[Round] = []
        self._environment: dict[str, str | None] = {}

    def start(self, run: RunInfo, rounds: list[Round]) -> None:
        if self.mode == "disabled":
            return
        self._info, self._rounds = run, list(rounds)
        self._keep_inside(Path(run.run_dir))
        with self._quitting_on_error():
            if not self._open(run, "loop"):  # a resumed offline run is a folder of its own
                for i in range(len(rounds)):
                    self._log(i)

    def alert(self, title: str, text: str) -> None:
        if self._run is not None:
            with self._quitting_on_error(), _no_warnings():
                self._run.alert(title=title, text=text)

    def finished(self, round_: Round) -> None:
        self._rounds.append(round_)
        if self._run is not None:
            with self._quitting_on_error():
                self._log(len(self._rounds) - 1)
                self._artifacts(round_)

    def close(self, rounds: list[Round], summary: Json) -> None:
        if self._run is None or self._info is None:
            return
        with self._quitting_on_error():
            wandb = _wandb()
            found = entries(rounds)
            self._run.log({"rounds": _rounds_table(wandb, rounds), "transfer": _transfer_table(wandb, found)})
            self._end(summary, f"{_safe(self._info.model)}-report")
        self._quit()

    def measured(self, run: RunInfo, tables: Mapping[str, Table], summary: Json) -> None:
        if self.mode == "disabled":
            return
        self._info = run
        self._keep_inside(Path(run.run_dir))
        with self._quitting_on_error():
            wandb = _wandb()
            self._open(run, run.name)
            for name, (columns, rows) in tables.items():
                table = wandb.Table(columns=list(columns), data=[list(row) for row in finite({"rows": rows})["rows"]])
                self._run.log({name: table})
                numbers = [c for i, c in enumerate(columns) if all(number(row[i]) is not None for row in rows)]
                if len(numbers) > 1:
                    chart = wandb.plot.scatter(table, numbers[0], numbers[1], title=name)
                    self._run.log({f"{name}_chart": chart})
            self._end(summary, f"{_safe(run.model)}-{run.name}-report")
        self._quit()

    def _open(self, run: RunInfo, job_type: str) -> bool:
        """Whether the run is online."""
        online = self.mode == "online" or (self.mode == "auto" and bool(os.environ.get("WANDB_API_KEY")))
        try:
            self._run = self._init(run, job_type, online)
        except Exception as error:
            if not online:
                raise
            log.warning("W&B cannot be reached (%s): this run is kept offline, for `wandb sync`", error)
            _wandb().teardown()  # else the id counts as in use
            self._run = self._init(run, job_type, online=False)
        return online

    def _end(self, summary: Json, report_name: str) -> None:
        assert self._info is not None
        for name, value in _flat(finite(summary)):
            self._run.summary[f"final/{name}"] = value
        report = Path(self._info.run_dir) / "report.html"
        if report.exists():
            page = _wandb().Artifact(report_name, type="report")
            page.add_file(str(report), policy="immutable")
            self._run.log_artifact(page)

    def _init(self, run: RunInfo, job_type: str, online: bool) -> Any:
        wandb = _wandb()
        settings = wandb.Settings(
            console="off", silent=True, quiet=True, init_timeout=self.timeout_s, finish_timeout=self.timeout_s,
            disable_git=True, disable_code=True, save_code=False, x_disable_meta=True, x_disable_stats=True,
        )  # fmt: skip
        with _no_warnings():
            return wandb.init(
                project=self.project, entity=self.entity, tags=list(self.tags) or None, name=run.name, group=run.model,
                job_type=job_type, id=run_id(run, job_type), resume="allow" if online else None,
                mode="online" if online else "offline",
                dir=run.run_dir, config=finite(redacted({**run.settings, "task": run.task, "store": run.store})),
                settings=settings,
            )  # fmt: skip

    def _log(self, position: int) -> None:
        rounds, epochs = self._rounds[: position + 1], stateless_epochs(self._info.settings if self._info else {})
        with _no_warnings():
            self._run.log(about_round(rounds, epochs), step=rounds[-1].index)

    def _artifacts(self, round_: Round) -> None:
        """Each version as an artifact of one small file: its name, origin and verdict, never weights. Without a file
        W&B would take all versions for one. Aliases cannot have dots."""
        wandb = _wandb()
        for entry in entries([round_]):
            metadata = finite({k: v for k, v in entry.data.items() if k not in ("transfer", "comparisons")})
            artifact = wandb.Artifact(_safe(self._info.model), type="model", metadata={**metadata, "fate": entry.fate})  # type: ignore[union-attr]
            aliases = [f"v-{entry.version.replace('.', '-')}", *(["champion"] if entry.fate == "champion" else [])]
            with artifact.new_file("version.json", mode="w") as file:
                json.dump(metadata, file, indent=1)
            self._run.log_artifact(artifact, aliases=aliases)

    def _keep_inside(self, run_dir: Path) -> None:
        folders = {name: str(run_dir / "wandb" / name[6:].lower()) for name in FOLDERS}
        for name, value in {**folders, "WANDB_DIR": str(run_dir), **QUIET}.items():
            self._environment[name] = os.environ.get(name)
            os.environ[name] = value
        (run_dir / "wandb").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _quitting_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._quit(failed=True)
            raise

    def _quit(self, failed: bool = False) -> None:
        run, self._run = self._run, None
        try:
            if run is not None:
                with _no_warnings():
                    run.finish(exit_code=int(failed))
        except Exception as error:
            if not failed:
                raise
            log.debug("W&B did not end well: %s", error)
        finally:
            for name, value in self._environment.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
            self._environment = {}


def run_id(run: RunInfo, job_type: str = "loop") -> str:
    """The same for every job of the kind on the same model of the same store; of a measurement, for each run folder."""
    kind = "" if job_type == "loop" else f"\n{job_type}\n{run.run_dir}"
    return hashlib.sha256(f"{run.store}\n{run.model}{kind}".encode()).hexdigest()[:16]


def about_round(rounds: Sequence[Round], epochs: int) -> Json:
    """What is logged for the last of `rounds`: flat numbers, named by what they are about."""
    r, spent = rounds[-1], cost(rounds, epochs)[-1]
    flat: Json = {
        "round": r.index,
        "window_end": r.window.end.timestamp(),
        "status": r.status,
        "decision/fire": int(r.decision.fire),
        "decision/reason": r.decision.reason,
        "data/events": r.observation.events,
        "data/labelled": r.observation.labelled,
        "data/late_labels": r.observation.late_labels,
        "cost/rows_trained": spent.trained,
        "cost/rows_from_scratch": spent.from_scratch,
        "cost/train_seconds": spent.seconds,
        "round/seconds": r.seconds,
        "round/versions": len(r.versions),
    }
    sides = {"prequential": r.observation.prequential, "static": r.observation.static, "served": r.served}
    for side, values in sides.items():
        flat |= {f"{side}/{name}": v for name, value in values.items() if (v := number(value)) is not None}
    if r.freshness_s is not None:
        flat["round/freshness_s"] = r.freshness_s
    if r.champion:
        flat["champion"] = r.champion
    return flat


def _rounds_table(wandb: Any, rounds: Sequence[Round]) -> Any:
    names = ("round", "window_start", "window_end", "status", "reason", "champion", "versions", "events", "late_labels")
    table = wandb.Table(columns=list(names))
    for r in rounds:
        made = ", ".join(str(v["version"]) for v in r.versions)
        seen = r.observation
        start, end = r.window.start.isoformat(), r.window.end.isoformat()
        table.add_data(
            r.index, start, end, r.status, r.decision.reason, r.champion or "", made, seen.events, seen.late_labels
        )
    return table


def _transfer_table(wandb: Any, found: Sequence[Entry]) -> Any:
    table = wandb.Table(columns=["version", "round", "fate", "window", "loss"])
    for entry in found:
        for window, loss in losses(entry).items():
            table.add_data(entry.version, entry.round.index, entry.fate, window, loss)
    return table


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name}/")
        elif item is not None:
            yield f"{prefix}{name}", item


def _safe(name: str) -> str:
    """Artifact names may have letters, digits, dashes, underscores and dots."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)


def _wandb() -> Any:
    with _no_warnings():
        import wandb  # absolute: the library, not this file

        return wandb


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Warnings of W&B are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
