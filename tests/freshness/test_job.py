"""The whole job on a small table, in this process and on two nodes of a cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltrain.errors import ConfigError, UpdateError
from cltrain.freshness import ledger
from cltrain.freshness_job import run_freshness
from cltrain.tracking.freshness import tables

Small = Callable[..., dict[str, Any]]
QUICK = ["freshness.lengths=[2,1]", "freshness.seeds=1", "train.stateless.min_steps=1", "freshness.draws=300"]
QUICK += ["train.stateless.epochs=1", "freshness.windows=4", "freshness.ages=[0,1,3]"]


def test_a_measurement_that_was_cut_off_repeats_nothing_and_ends_alike(
    small: Small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = small(*QUICK, "freshness.slice_by=shop", job="freshness")
    ran: list[str] = []
    real = ledger.run_trial

    def run(work: Any, trial: Any) -> Any:
        if len(ran) == 9:
            raise KeyboardInterrupt
        ran.append(trial["key"])
        return real(work, trial)

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "run_trial", run)
        with pytest.raises(KeyboardInterrupt):
            run_freshness(settings)
    first = list(ran)
    monkeypatch.setattr(ledger, "run_trial", lambda work, trial: ran.append(trial["key"]) or real(work, trial))
    summary = run_freshness(settings)
    assert len(ran) == len(set(ran)) == summary["trials"]["planned"]
    assert summary["trials"]["on_file"] == len(first) == 9

    whole = run_freshness(settings | {"run_dir": str(tmp_path / "again")})
    assert len(ran) == summary["trials"]["planned"], "all is on file"
    assert [whole[key] for key in ("curve", "modes")] == [summary[key] for key in ("curve", "modes")]
    fresh = {**settings, "store": {**settings["store"], "root": str(tmp_path / "other")}}
    uncut = run_freshness(fresh | {"run_dir": str(tmp_path / "uncut")})
    assert uncut["curve"] == summary["curve"], "as if it had not been cut off"

    assert summary["ages"] == [0, 1, 3]
    assert summary["curve"][-1]["loss_delta"] > 0, "the rule turns"
    assert {s["slice"] for s in summary["modes"]["stateful"]["slices"]} == {"shop = a", "shop = b", "shop = c"}
    assert not list((tmp_path / "store").glob("freshness/states/*/*")), "no state is left"

    page = (tmp_path / "run" / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    charts = {chart["id"]: chart for chart in json.loads(found[1])}
    assert charts.keys() == {"curve", "matrix", "slices", "cadence", "lengths"}
    for chart in charts.values():
        assert f'id="csv-{chart["id"]}"' in page
        assert all(len(row) == len(chart["columns"]) for row in chart["rows"])
    assert not re.search(r'(?:src|href)="https?:', page.partition("<script>")[0])
    assert tables(summary).keys() == {f"freshness/{name}" for name in charts}


def test_more_seeds_need_only_the_trials_of_those_seeds(small: Small, tmp_path: Path) -> None:
    quick = [*QUICK, "freshness.mode=stateless", "freshness.ages=[0,1]"]
    one = run_freshness(small(*quick, job="freshness"))
    two = run_freshness(small(*quick, "freshness.seeds=2", job="freshness"))
    assert two["trials"]["on_file"] == one["trials"]["planned"]
    narrow = run_freshness(small(*quick, "freshness.seeds=9", "freshness.precision=10", job="freshness"))
    assert narrow["trials"]["stopped_early"]
    assert narrow["cost"]["trainings"] < narrow["trials"]["planned"]


def test_what_is_wrong_is_said_before_anything_starts(small: Small) -> None:
    with pytest.raises(ConfigError, match=r"freshness\.slice_by=city is no feature to slice by; there are: x, z, shop"):
        run_freshness(small("freshness.slice_by=city", "freshness.lengths=[1]", job="freshness"))
    with pytest.raises(ConfigError, match=r"fill 10 periods of freshness\.every=7d, and 25 are needed"):
        run_freshness(small("freshness.lengths=[20]", job="freshness"))
    with pytest.raises(ConfigError, match=r"freshness\.mode=stateful needs a method and a model"):
        run_freshness(small("freshness.mode=stateful", "method=from_scratch", job="freshness"))
    with pytest.raises(ConfigError, match=r"freshness\.cpus_per_trial must be 2 or less"):
        run_freshness(small("freshness.cpus_per_trial=3", "cluster.workers=1", "cluster.num_cpus=2", job="freshness"))
    with pytest.raises(ConfigError, match=r"freshness\.gpus_per_trial must be \d or less"):
        run_freshness(small("freshness.gpus_per_trial=99", "cluster.workers=1", job="freshness"))
    with pytest.raises(UpdateError, match=r"none of \d+ trials could be trained: .*finite"):
        run_freshness(small(*QUICK, "train.stateless.learning_rate=1e30", job="freshness"))


def test_examples_compose(settings_of: Callable[..., dict[str, Any]]) -> None:
    priced = settings_of("+experiment=freshness_prices", job="freshness")["freshness"]
    assert (priced["prices"]["value_per_unit"], priced["seeds"]) == (20_000.0, 3)
    assert settings_of("+experiment=freshness_daily", job="freshness")["freshness"]["every"] == "1d"


@pytest.mark.ray
def test_two_nodes_give_the_same_matrix_as_one_process(small: Small, tmp_path: Path) -> None:
    quick = [*QUICK, "freshness.ages=[0,1]", "cluster.dashboard=false"]
    alone = run_freshness(small(*quick, job="freshness"))
    settings = small(*quick, "cluster.workers=1", f"store.root={tmp_path / 'nodes'}", job="freshness")
    done = subprocess.run(
        [sys.executable, "-m", "tests.freshness.two_nodes"],
        input=json.dumps(settings | {"run_dir": str(tmp_path / "nodes-run")}),
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout.splitlines()[-1])
    assert ours["trials"]["planned"] == alone["trials"]["planned"]
    for mode, of in alone["modes"].items():
        assert ours["modes"][mode]["matrix"] == json.loads(json.dumps(of["matrix"])), mode
    assert ours["curve"] == json.loads(json.dumps(alone["curve"]))
