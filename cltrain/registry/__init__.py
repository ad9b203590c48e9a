"""The registry: versions, lineage, aliases, approvals and rounds in one transactional store, beside a root of blobs."""

from cltrain.registry.ancestry import Impact, impact
from cltrain.registry.approvals import Approval
from cltrain.registry.audit import AuditCheck
from cltrain.registry.registry import Registry, models
from cltrain.registry.rounds import RoundLog
from cltrain.registry.store import Store
from cltrain.registry.versions import VersionRecord

__all__ = [
    "Approval",
    "AuditCheck",
    "Impact",
    "Registry",
    "RoundLog",
    "Store",
    "VersionRecord",
    "impact",
    "models",
]
