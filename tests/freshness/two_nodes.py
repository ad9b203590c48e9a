"""A measurement on a cluster of two nodes: `python -m tests.freshness.two_nodes`, with the settings as JSON on standard
input. Prints the summary."""

from __future__ import annotations

import json
import sys

from cltrain.freshness_job import run_freshness


def main() -> None:
    from ray.cluster_utils import Cluster

    settings = json.load(sys.stdin)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        settings["cluster"] = {**settings["cluster"], "address": nodes.address}
        summary = run_freshness(settings)
    finally:
        nodes.shutdown()
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
