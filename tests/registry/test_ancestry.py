"""Who came from whom, against a graph that is known."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from cltrain.errors import ConfigError, StoreError
from cltrain.registry import Registry, impact
from cltrain.registry.tables import DependencyRow, SnapshotFileRow, SnapshotRow, VersionRow

Register = Callable[..., object]
Node = tuple[str, str]
MODELS = ("embedding", "ranker", "price")


def test_versions_are_a_tree_of_majors_and_minors(local: Registry, register: Register) -> None:
    for major, minors in ((1, 64), (2, 11), (3, 32)):
        register(local)
        for minor in range(minors):
            register(local, f"{major}.{minor if minor != 7 else 5}")  # X.8 is a second child of X.5
    assert [v.version for v in local.lineage("2.11")] == [f"2.{i}" for i in (11, 10, 9, 8, 5, 4, 3, 2, 1, 0)]
    assert [v.version for v in local.lineage("2.7")] == [f"2.{i}" for i in range(7, -1, -1)]
    assert local.versions()[-1].version == "3.32"
    assert [v.version for v in local.descendants("3.30")] == ["3.31", "3.32"]
    assert [v.version for v in local.versions(last=2)] == ["3.31", "3.32"]
    assert [v.version for v in local.versions(last=2, before="1.2")] == ["1.0", "1.1"]
    assert local.trained_rows("1.2") == 15
    for version in local.versions(last=20):
        found = local.lineage(version.version)
        assert (found[0], found[-1].version) == (version, "3.0")
    with pytest.raises(StoreError, match=r"no version '9\.9'; it has: 90 older ones and 3\.13, .*, 3\.32$"):
        local.version("9.9")


def grown(registry: Registry, nodes: int) -> tuple[dict[Node, set[Node]], dict[Node, str]]:
    """Random versions of three models: their bases, and the file each was trained on."""
    draw = random.Random(0)
    bases: dict[Node, set[Node]] = {}
    trained: dict[Node, str] = {}
    versions, depends = [], []
    for i in range(nodes):
        model = draw.choice(MODELS)
        own = [node for node in bases if node[0] == model]
        parent = draw.choice(own) if own and draw.random() < 0.8 else None
        node = (model, f"{i}.0")
        others = [n for n in bases if n[0] != model and n[0] < model]
        on = set(draw.sample(others, min(len(others), draw.choice((0, 0, 1, 2)))))
        bases[node], trained[node] = on | ({parent} if parent else set()), f"file {draw.randrange(nodes)}"
        depends += [
            {"model": model, "version": node[1], "on_model": m, "on_version": version} for m, version in sorted(on)
        ]
        versions.append(
            {"model": model, "version": node[1], "parent": parent[1] if parent else None, "ordinal": i}
            | {"snapshot_digest": trained[node].replace("file", "snapshot"), "round_index": i, "major": i, "minor": 0}
            | {name: "x" for name in ("reason", "state", "weights_digest", "settings_digest")}
            | {"kind": "stateless", "seed": 0, "created_at": datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=i)}
            | {"challenger": {}, "card": {}, "verdict": {"accepted": True, "reasons": []}, "packages": {}}
        )
    files = [
        {"snapshot_digest": f"snapshot {i}", "name": f"{i}.parquet", "file_digest": f"file {i}", "seen": False}
        for i in range(nodes)
    ]
    rule = {"split": "train", "until_us": 0, "excluded": [], "holdout_share": 0.1, "seed": 0}
    with registry.store.writing() as session:
        session.execute(insert(VersionRow), versions)
        session.execute(insert(DependencyRow), depends)
        session.execute(insert(SnapshotRow), [{"digest": f"snapshot {i}", **rule} for i in range(nodes)])
        session.execute(insert(SnapshotFileRow), files)
    return bases, trained


def test_impact_is_exact_on_a_random_graph_of_a_thousand_versions(registry: Registry) -> None:
    bases, trained = grown(registry, 1000)
    holds: dict[Node, set[str]] = {}
    for node, on in bases.items():  # a base comes before what is based on it
        holds[node] = {trained[node]}.union(*(holds[base] for base in on))
    early = sorted(set(list(trained.values())[:40]))[:8]
    seconds = []
    for file in early:
        started = time.perf_counter()
        found = impact(registry.store, file=file)
        seconds.append(time.perf_counter() - started)
        assert {(v.model, v.version) for v in found.versions} == {node for node in holds if file in holds[node]}
        assert {(v.model, v.version) for v in found.direct} == {node for node in trained if trained[node] == file}
        assert found == impact(registry.store, snapshot=file.replace("file", "snapshot"))
    assert min(seconds) < 1
    assert max(len(impact(registry.store, file=file).versions) for file in early) > 100
    came_from: dict[Node, set[Node]] = {}
    for node, on in bases.items():
        came_from[node] = on.union(*(came_from[base] for base in on))
    node = next(iter(bases))
    found_after = Registry(registry.store, node[0]).descendants(node[1])
    assert {(v.model, v.version) for v in found_after} == {n for n in bases if node in came_from[n]}
    assert [v.created_at for v in found_after] == sorted(v.created_at for v in found_after)


def test_a_version_names_those_it_depends_on_and_is_outdated_by_their_successors(
    registry: Registry, register: Register
) -> None:
    embedding = Registry(registry.store, "embedding")
    register(embedding)
    embedding.promote("1.0", reason="first")
    register(registry, depends_on=("embedding:1.0",))
    register(registry, "1.0", depends_on=("embedding:1.0",))
    assert registry.version("1.1").depends_on == ("embedding:1.0",)
    assert registry.version("1.1").summary()["depends_on"] == ["embedding:1.0"]
    assert [v.depends_on for v in registry.lineage("1.1")] == [("embedding:1.0",)] * 2
    assert [v.name for v in embedding.descendants("1.0")] == ["ranker:1.0", "ranker:1.1"]
    assert registry.outdated("1.1") == {}
    register(embedding, "1.0")
    embedding.promote("1.1", reason="better")
    assert registry.outdated("1.1") == {"embedding:1.0": "embedding:1.1"}
    with pytest.raises(StoreError, match=r"depends on 'embedding:7\.0', which is no version of another model"):
        register(registry, depends_on=("embedding:7.0",))


def test_files_are_read_from_the_manifests_also_of_versions_from_before(
    local: Registry, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    def freeze(digest: str, *files: str) -> None:
        rule = dict.fromkeys(("after", "start", "end")) | {"split": "train", "until": 0, "excluded": [], "seen": []}
        rule |= {"holdout_share": 0.1, "seed": 0}
        found = {"rule": rule, "files": [{"name": f, "digest": f"digest of {f}", "rows": 5} for f in files]}
        local.store.storage.write("snapshots/" + digest + ".json", json.dumps(found).encode())

    freeze("a", "1.parquet")
    register(local, snapshot="a")
    register(local, "1.0", snapshot="b")
    register(local, snapshot="c")
    freeze("b", "1.parquet", "2.parquet")  # as if this had not been noted when it was registered
    with caplog.at_level(logging.WARNING):
        found = impact(local.store, file="2.parquet")
    assert [v.version for v in found.versions] == ["1.1"]
    assert "the manifest of snapshot c is gone" in caplog.text
    local.promote("1.1", reason="x")
    found = impact(local.store, file="digest of 1.parquet")
    assert [[v.version for v in part] for part in (found.direct, found.inherited, found.live)] == [
        ["1.0", "1.1"],
        [],
        ["1.1"],
    ]
    assert [v.version for v in impact(local.store, snapshot="a").inherited] == ["1.1"]
    with pytest.raises(StoreError, match=r"no version was trained on 9\.parquet"):
        impact(local.store, file="9.parquet")
    with pytest.raises(ConfigError, match="exactly one of them"):
        impact(local.store)
