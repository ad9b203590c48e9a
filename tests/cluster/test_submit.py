"""Jobs through Ray's job submission, on a real cluster of one node."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cltrain.cluster.submit import submission_id, submit
from cltrain.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
TABLE = ["data=parquet", "data.event_time=when", "data.label=clicked", "data.exclude=[id,known,kind,amount]"]
QUIET = ["serve=none", "tracking=files", "cluster.workers=0", "max_rounds=2"]


@pytest.fixture
def cluster() -> Iterator[str]:
    """A Ray that takes jobs, also while another runs on this machine; the address of its dashboard."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": None, "dashboard_agent_listen_port": 0}
    ray = Cluster(initialize_head=True, head_node_args=head)
    yield f"http://{ray.head_node.webui_url}"
    ray.shutdown()


@pytest.mark.ray
def test_a_job_runs_on_the_cluster_once(
    cluster: str, small: Callable[..., dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ray.job_submission import JobSubmissionClient

    store, run = tmp_path / "store", tmp_path / "run"
    folders = [f"data.path={tmp_path / 'events'}", f"store.root={store}", f"hydra.run.dir={run}"]
    overrides = [*TABLE, *QUIET, *folders]
    name = submit("loop", overrides, cluster, ROOT)
    assert capfd.readouterr().out.splitlines()[-1] == str(run / "summary.json")
    assert json.loads((run / "summary.json").read_text())["versions"] == ["1.0", "1.1"]
    written = (run / "summary.json").stat().st_mtime
    assert submit("loop", overrides, cluster, ROOT) == name
    assert (run / "summary.json").stat().st_mtime == written, "submitted twice, run once"
    details = JobSubmissionClient(cluster).get_job_info(name)
    assert details.metadata == {"project": "cltrain", "job": "loop"}
    with pytest.raises(ClusterError, match="ended as FAILED"):
        submit("loop", [*overrides, "window.evry=1d"], cluster, ROOT)


def test_the_id_is_that_of_the_command() -> None:
    assert submission_id("loop", ["a=1"]) == submission_id("loop", ["a=1"]) != submission_id("loop", ["a=2"])


@pytest.mark.parametrize(
    ("job", "overrides", "message"),
    [
        ("loop", [], "needs store.root=FOLDER_OR_URI that outlives it"),
        (
            "lop",
            ["store.root=/x"],
            "there is no job 'lop'; there are: backtest, evaluate, freshness, loop, recalibrate, search, serve, update",
        ),
        ("loop", ["store.root=/x"], "no cluster answers at RAY_ADDRESS=http://127.0.0.1:1"),
    ],
)
def test_what_cannot_be_submitted_says_why(job: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        submit(job, overrides, "http://127.0.0.1:1", ROOT)
