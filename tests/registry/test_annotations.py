"""Tags, notes, and stages that only evidence brings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cltrain.errors import ConfigError, ConflictError
from cltrain.records import Verdict
from cltrain.registry import Registry

Register = Callable[..., object]
PASSED = Verdict(accepted=True, reasons=("no guardrail was crossed",))
FAILED = Verdict(accepted=False, reasons=("latency",))


def test_a_tag_has_its_last_value(registry: Registry, register: Register) -> None:
    register(registry)
    register(registry)
    registry.tag("1.0", "team", "maps", by="ann")
    registry.tag("1.0", "team", "routes", by="bob")
    registry.tag("1.0", "team", "routes", by="bob")
    registry.tag("1.0", "golden", by="ann")
    registry.tag("2.0", "golden")
    registry.tag("2.0", "golden", None)
    registry.tag("2.0", "never", None)
    assert [v.tags for v in registry.versions()] == [{"team": "routes", "golden": ""}, {}]
    assert registry.version("1.0").summary()["tags"] == {"team": "routes", "golden": ""}
    assert [e["details"]["value"] for e in registry.audit_log() if e["action"] == "tag"] == [
        "maps",
        "routes",
        "",
        "",
        None,
    ]
    with pytest.raises(ConfigError, match="a tag needs a name without spaces around it, not ' x'"):
        registry.tag("1.0", " x")


def test_notes_stay_in_their_order(local: Registry, register: Register) -> None:
    register(local)
    local.note("1.0", "trained during the strike", by="ann")
    local.note("1.0", "kept for the audit", by="bob")
    assert [(n["text"], n["by"]) for n in local.notes("1.0")] == [
        ("trained during the strike", "ann"),
        ("kept for the audit", "bob"),
    ]
    with pytest.raises(ConfigError, match="a note needs a text"):
        local.note("1.0", " ")


def test_a_stage_is_reached_by_evidence_alone(registry: Registry, register: Register) -> None:
    register(registry)
    register(registry, accepted=False)
    assert [v.stage for v in registry.versions()] == ["validated", "candidate"]
    registry.advance("1.0", "validated")
    for evidence, why in ((None, "none is there"), (FAILED, "latency")):
        with pytest.raises(ConflictError, match=f"needs a passed report on live traffic .*: {why}"):
            registry.advance("1.0", "production-validated", evidence)
    registry.advance("1.0", "production-validated", PASSED, by="guard")
    assert registry.version("1.0").stage == "production-validated"
    assert registry.audit_log()[-1]["details"]["evidence"]["reasons"] == ["no guardrail was crossed"]
    with pytest.raises(ConflictError, match=r"ranker:2\.0 is not validated: its verdict is a rejection"):
        registry.advance("2.0", "production-validated", PASSED)
    with pytest.raises(ConflictError, match=r"ranker:2\.0 is not validated"):
        registry.advance("2.0", "validated", PASSED)
    with pytest.raises(ConflictError, match="is production-validated: it does not go to candidate"):
        registry.advance("1.0", "candidate")
    with pytest.raises(ConfigError, match="a stage is one of candidate, validated, production-validated, not 'prod'"):
        registry.advance("1.0", "prod")
