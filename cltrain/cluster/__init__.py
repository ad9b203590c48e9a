"""The cluster: where Ray is started, and the two runners of updates. Only this folder of the library imports ray."""

from cltrain.cluster.session import Cluster

__all__ = ["Cluster"]
