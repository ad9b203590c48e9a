"""`python -m jobs.serve` as a user starts it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cltrain.registry import Registry, Store
from jobs import serve
from serve.local import free_port, get_json

ROOT = Path(__file__).resolve().parents[2]


def command(store: Store, tmp_path: Path, *overrides: str) -> list[str]:
    run_dir = f"hydra.run.dir={tmp_path / 'run'}"
    return [
        sys.executable,
        "-m",
        "jobs.serve",
        f"store.root={store.root}",
        run_dir,
        "cluster.dashboard=false",
        *overrides,
    ]


@pytest.mark.slow
@pytest.mark.ray
def test_it_serves_until_it_is_told_to_stop(store: Store, registry: Registry, tmp_path: Path) -> None:
    registry.promote("1.0", reason="first")
    port = free_port("127.0.0.1", 0)
    told = command(store, tmp_path, "model.name=binary", f"serve.port={port}", "cluster.num_cpus=1")
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with subprocess.Popen(told, stdout=subprocess.PIPE, cwd=ROOT, text=True, env=env) as job:
        assert job.stdout is not None
        try:
            line = job.stdout.readline()
            assert f"http://127.0.0.1:{port}" in line
            assert get_json(f"http://127.0.0.1:{port}", "/versions", 5)["champion"] == "binary:1.0"
        finally:
            job.send_signal(signal.SIGTERM)
        rest = job.stdout.read().strip().splitlines()
    assert job.returncode == 0
    assert rest[-1] == str(tmp_path / "run/summary.json")
    assert '"champion":"1.0"' in Path(rest[-1]).read_text()


@pytest.mark.slow
def test_a_store_of_many_models_asks_which(store: Store, tmp_path: Path) -> None:
    done = subprocess.run(command(store, tmp_path), cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "binary, multiclass, regression: pass model.name=NAME" in done.stderr


@pytest.mark.parametrize("choice", ["none", "running"])
def test_it_starts_an_application_and_nothing_else(
    store: Store, tmp_path: Path, choice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", command(store, tmp_path, f"serve={choice}")[2:])
    with pytest.raises(SystemExit) as ended:
        serve.main()
    assert ended.value.code == 2
    assert "serve=local" in capsys.readouterr().err
