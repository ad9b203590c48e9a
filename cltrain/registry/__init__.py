"""The registry: versions, lineage, aliases and rounds in one transactional store, beside a root of blobs."""

from cltrain.registry.registry import Registry, VersionRecord
from cltrain.registry.rounds import RoundLog
from cltrain.registry.store import Store

__all__ = ["Registry", "RoundLog", "Store", "VersionRecord"]
