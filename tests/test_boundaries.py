"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"records", "batch", "errors", "seeding", "clock", "storage", "task"}
ALLOWED = {
    "data": set(),
    "memory": set(),
    "models": set(),
    "methods": {"memory", "models"},
    "train": {"data", "models", "methods"},
    "evaluate": set(),
    "gate": set(),
    "monitor": set(),
    "trigger": set(),
    "registry": set(),
    "online": set(),
    "freshness": {"config", "data", "evaluate", "methods", "train"},
    "tracking": {"evaluate"},
    # Around the loop, as a job is: a trial of it is the loop itself.
    "backtest": {
        *{"assemble", "cluster", "config", "data", "evaluate", "loop", "models", "observe", "parts"},
        *{"registry", "search", "summary", "tracking", "train"},
    },
    "cli": {
        *{"assemble", "diff", "doctor", "online", "registry", "reproduce", "retention", "reviews", "rows", "tracking"},
    },
    "cluster": {"config", "data", "evaluate", "train", "registry"},
}
ONE_FILE = {
    "wandb": "cltrain/tracking/wandb.py",
    "mlflow": "cltrain/tracking/mlflow.py",
    "deepspeed": "cltrain/train/engines/deepspeed.py",
    "faiss": "cltrain/memory/diverse.py",
}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def parts_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("cltrain.")}


@pytest.mark.parametrize("name", sorted(BASE))
def test_the_base_imports_nothing_above_it(name: str) -> None:
    assert parts_of(imports(ROOT / "cltrain" / f"{name}.py")) <= BASE


@pytest.mark.parametrize("stage", sorted(ALLOWED))
def test_a_stage_imports_the_base_and_what_the_design_allows(stage: str) -> None:
    for path in files(f"cltrain/{stage}"):
        assert parts_of(imports(path)) <= BASE | ALLOWED[stage] | {stage}, path


def test_every_folder_has_its_rule() -> None:
    folders = {p.parent.name for p in (ROOT / "cltrain").glob("*/__init__.py")}
    assert folders == set(ALLOWED)


def test_ray_is_imported_at_the_edge_only() -> None:
    for path in files("cltrain"):
        if any(name == "ray" or name.startswith("ray.") for name in imports(path)):
            assert path.parent.name == "cluster", path


@pytest.mark.parametrize(("package", "home"), ONE_FILE.items())
def test_heavy_packages_are_imported_in_one_file(package: str, home: str | None) -> None:
    found = [
        str(path.relative_to(ROOT))
        for folder in ("cltrain", "jobs", "serve")
        for path in files(folder)
        if any(name.split(".")[0] == package for name in imports(path))
    ]
    assert found == ([home] if home else [])


def test_the_library_does_not_import_jobs_or_serve() -> None:
    for path in files("cltrain"):
        assert not {name.split(".")[0] for name in imports(path)} & {"jobs", "serve"}, path


def test_the_core_works_with_torch_numpy_and_pyarrow_alone() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'ray', 'hydra', 'omegaconf', 'sqlalchemy', 'wandb', 'deepspeed', 'faiss', 'peft',
            'pydantic'}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import cltrain.train.update, cltrain.train.predictor, cltrain.methods, cltrain.memory, cltrain.data.snapshot
import cltrain.data.flights, cltrain.train.engines, cltrain.evaluate, cltrain.config
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_jobs_are_short() -> None:
    for path in files("jobs"):
        assert len(path.read_text().splitlines()) < 60, path
