"""Jobs as processes: what is printed, and how they end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ["data=parquet", "data.event_time=when", "data.label=clicked", "data.exclude=[id,known,kind,amount]"]
QUIET = ["serve=none", "tracking=files", "cluster.workers=0", "max_rounds=2"]


def run(job: str, *overrides: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}
    command = [sys.executable, "-m", f"jobs.{job}", *overrides]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_the_last_line_is_the_path_of_the_summary(small: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_numeric, num_outputs, scale=1.0):\n"
        "        super().__init__()\n"
        "        self.layer, self.scale = torch.nn.Linear(num_numeric, num_outputs), scale\n"
        "    def forward(self, numeric, categorical):\n"
        "        return self.layer(numeric) * self.scale\n"
    )
    folders = [
        f"data.path={tmp_path / 'events'}",
        f"store.root={tmp_path / 'store'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = run("loop", *TABLE, *QUIET, *folders, "model._target_=mine.Net", "+model.scale=0.5", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    last = Path(done.stdout.splitlines()[-1])
    assert last == tmp_path / "run" / "summary.json"
    summary = json.loads(last.read_text())
    assert summary["versions"] == ["1.0", "1.1"]
    again = run("evaluate", *TABLE, *QUIET, *folders, "version='1.1'", "against='1.0'", path=str(tmp_path))
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stateful.optimizer_settings={momentum: 0.9}"], "is a mapping, to which entries are added: +train"),
        (["window.evry=3d"], "window.evry: there is no such setting; did you mean window.every?"),
        (["trigger=nope"], "Available options in 'trigger': manual"),
        (["data=parquet"], "data.event_time, data.label, data.path is not set"),
        (["seed=["], "no viable alternative"),
        (["method.parts.ewc.strength=much"], "method.parts.ewc.strength='much' must be a number"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line_and_exit_code_two(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    done = run("loop", *overrides, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_said_before_anything_starts(small: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        folders = [
            f"data.path={tmp_path / 'events'}",
            f"store.root={tmp_path / 'store'}",
            f"hydra.run.dir={tmp_path / 'run'}",
        ]
        done = run("loop", *TABLE, *folders, f"serve.port={port}", "tracking=files", "max_rounds=2")
    assert done.returncode == 2
    assert "is in use" in done.stderr
    assert "pass serve.port=N" in done.stderr


def test_a_store_that_cannot_be_written_is_said(small: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folders = [
        f"data.path={tmp_path / 'events'}",
        f"store.root={tmp_path / 'file' / 'x'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = run("loop", *TABLE, *QUIET, *folders)
    assert done.returncode == 2
    assert "is not writable" in done.stderr


@pytest.mark.ray
def test_a_job_joins_a_cluster_that_is_there_and_leaves_it_running(
    ray_session: str, small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    folders = [
        f"data.path={tmp_path / 'events'}",
        f"store.root={tmp_path / 'store'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    workers = ["cluster.workers=1", f"cluster.address='{address}'"]
    done = run("loop", *TABLE, *QUIET, *folders, *workers)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["versions"] == ["1.0", "1.1"]
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 2
