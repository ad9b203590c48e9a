"""An update on a cluster of two nodes, one of which dies in its middle: `python -m tests.cluster.two_nodes STORE`, with
the request as JSON on standard input. Prints the challengers made there and, then, by one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from cltrain.cluster import Cluster
from cltrain.cluster.local import LocalRunner
from cltrain.records import UpdateRequest, from_json, to_json
from cltrain.registry import Store
from tests.cluster.under_way import EVERY, wait_for_steps

NOTICE_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


@contextmanager
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """A cluster of two nodes with a CPU each, and the second of them."""
    from ray.cluster_utils import Cluster as LocalCluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": NOTICE_SOON}
    nodes = LocalCluster(initialize_head=True, head_node_args=head)
    try:
        second = nodes.add_node(num_cpus=1)
        yield nodes, second
    finally:
        nodes.shutdown()


def main(root: str) -> None:
    request = from_json(UpdateRequest, json.load(sys.stdin))
    with two_nodes() as (nodes, second), ThreadPoolExecutor(1) as thread:
        cluster = Cluster(workers=2, min_workers=1, cpus_per_worker=1, address=nodes.address)
        with cluster.session(True, {"job": "tests"}), cluster.runner(Store(root=root, url=None)) as group:
            update = thread.submit(group.update, request)
            interrupted = wait_for_steps(root, 2 * EVERY)
            nodes.remove_node(second, allow_graceful=False)
            ours = update.result(timeout=180)
    alone = LocalRunner(root=root).update(request)
    print(json.dumps({"interrupted": interrupted, "ours": to_json(ours), "alone": to_json(alone)}))


if __name__ == "__main__":
    main(sys.argv[1])
