"""Fewer workers come back after the loss of a node, in a cluster of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cltrain.cluster import Cluster
from cltrain.errors import ConfigError
from cltrain.records import UpdateRequest, to_json
from cltrain.registry import Store
from tests.cluster.under_way import of_many_steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_update_that_lost_a_node_is_done_again_by_those_that_are_left(request_of: tuple[UpdateRequest, str]) -> None:
    request, root = request_of
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.two_nodes", root],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, errors = process.communicate(json.dumps(to_json(of_many_steps(request))), timeout=240)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0, errors
    said = json.loads(out.splitlines()[-1])
    ours, alone = said["ours"], said["alone"]
    assert said["interrupted"]["world"] == 2
    assert 0 < said["interrupted"]["numbers"]["steps"] < ours["steps"]
    assert (ours["workers"], alone["workers"]) == (1, 1)
    for same in ("weights_digest", "steps", "rows_trained", "loss"):
        assert ours[same] == alone[same], "from its start, by one: what two had done is not used"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 2, "min_workers": 3}, "from 1 to cluster.workers=2, or null for all of them, not 3"),
        ({"workers": 2, "min_workers": 0}, "cluster.min_workers must be from 1"),
        (
            {"workers": 2, "gpus_per_worker": 0.5},
            "cluster.gpus_per_worker must be 0 or 1 with several workers, not 0.5",
        ),
    ],
)
def test_settings_out_of_range_say_what_to_do(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(**settings)  # type: ignore[arg-type]


def test_threads_are_what_was_asked_for_and_on_record(request_of: tuple[UpdateRequest, str]) -> None:
    request, root = request_of
    with Cluster(workers=0, threads_per_worker=2).runner(Store(root=root)) as runner:
        assert runner.update(request).made["threads"] == 2  # type: ignore[attr-defined]
