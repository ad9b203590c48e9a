import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cltrain.errors import ConfigError
from cltrain.tracking import wandb as module
from cltrain.tracking.base import Trackers
from cltrain.tracking.jsonl import Jsonl
from cltrain.tracking.wandb import Wandb, about_round, run_id

HERE = Path(__file__).parent


def test_offline_in_a_process_of_its_own(tmp_path):
    """Real W&B: nothing outside the run folder, nothing on standard output, all versions as artifacts."""
    script = f"""
    import sys; sys.path.insert(0, {str(HERE)!r})
    from conftest import history, run_info, summary
    from cltrain.tracking.wandb import Wandb
    rounds, tracker = history(8), Wandb(mode="auto")
    tracker.start(run_info({str(tmp_path / "run")!r}), rounds[:2])
    tracker.alert("an update awaits approval", "cltrain approve retrain/7")
    for r in rounds[2:]:
        tracker.finished(r)
    tracker.close(rounds, summary(rounds))
    table = (("mode", "age", "loss_delta"), (("stateless", 0, 0.0), ("stateless", 4, 0.018)))
    tracker.measured(run_info({str(tmp_path / "run")!r}), {{"freshness/curve": table}}, {{"recommended_every": "28d"}})
    """
    home = tmp_path / "home"
    for folder in (home, tmp_path / "run"):
        folder.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
    loop, measured = sorted((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime)
    for file, said in (
        (loop, (b"v-1-4", b"prequential/log_loss", b"loop", b"cltrain", b"cltrain approve retrain/7")),
        (measured, (b"freshness/curve", b"freshness/curve_chart", b"final/recommended_every")),
    ):
        kept = file.read_bytes()
        for word in said:
            assert word in kept
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("run", "home")] == []
    assert [p for p in home.rglob("*") if p.is_file()] == []


class Broken:
    """A W&B that fails: at once, or after some calls."""

    def __init__(self, calls: int):
        self.calls, self.ended = calls, 0

    def __getattr__(self, name):
        return self if name == "summary" else self._call

    def _call(self, *args, **kwargs):
        self.calls -= 1
        if self.calls < 0:
            raise ConnectionError("no route to host")
        return self

    def finish(self, **kwargs):
        self.ended += 1


def test_a_run_belongs_to_the_entity_that_is_named(tmp_path, monkeypatch, make):
    given = {}

    class Asked(Broken):
        def init(self, **settings):
            given.update(settings)
            return self

    monkeypatch.setattr(module, "_wandb", lambda: Asked(100))
    tracker = Wandb(mode="offline", entity="a-team", project="fresh", tags=("night",))
    tracker.start(make.run_info(tmp_path), [])
    tracker.close([], {})
    assert (given["entity"], given["project"], given["tags"]) == ("a-team", "fresh", ["night"])


@pytest.mark.parametrize("calls", [0, 2, 3])
def test_a_broken_wandb_stops_no_loop(tmp_path, monkeypatch, caplog, make, calls):
    broken = Broken(calls)
    monkeypatch.setattr(module, "_wandb", lambda: broken)
    before = dict(os.environ)
    rounds = make.history(4)
    trackers = Trackers([Wandb(mode="offline"), Jsonl()])
    trackers.start(make.run_info(tmp_path), [])
    for r in rounds:
        trackers.finished(r)
    trackers.close(rounds, {})
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 4
    assert "Wandb is left out from now on" in caplog.text
    assert dict(os.environ) == before
    assert broken.ended == (calls > 1)


def test_disabled_does_nothing(tmp_path, monkeypatch, make):
    monkeypatch.setattr(module, "_wandb", lambda: pytest.fail("wandb was imported"))
    rounds = make.history(2)
    tracker = Wandb(mode="disabled")
    tracker.start(make.run_info(tmp_path), [])
    tracker.finished(rounds[0])
    tracker.close(rounds, {})
    assert list(tmp_path.iterdir()) == []


def test_the_id_is_that_of_store_and_model(make, tmp_path):
    a, b = make.run_info(tmp_path / "a"), make.run_info(tmp_path / "b", name="again")
    assert run_id(a) == run_id(b)
    assert run_id(a) != run_id(make.run_info(tmp_path, model="other"))


def test_what_is_logged_is_flat_and_plain(make):
    rounds = make.history(15)
    for i in range(15):
        logged = about_round(rounds[: i + 1], epochs=5)
        assert all(v is not None and not isinstance(v, dict) for v in logged.values())
        assert json.loads(json.dumps(logged)) == logged
    assert logged["status"] == "empty"
    assert not any(name.startswith("prequential") for name in logged)
    assert (
        about_round(rounds[:3], epochs=5)["static/log_loss"] > about_round(rounds[:3], epochs=5)["prequential/log_loss"]
    )


def test_only_this_file_imports_wandb():
    root = HERE.parent.parent
    users = [
        p
        for folder in ("cltrain", "jobs", "serve")
        for p in (root / folder).rglob("*.py")
        if "import wandb" in p.read_text()
    ]
    assert users == [root / "cltrain/tracking/wandb.py"]


def test_wrong_settings_name_the_fix():
    with pytest.raises(ConfigError, match="one of auto, online, offline, disabled"):
        Wandb(mode="on")
    with pytest.raises(ConfigError, match="timeout_s"):
        Wandb(timeout_s=0)
