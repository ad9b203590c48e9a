from pathlib import Path

import pytest
import yaml

from cltrain.config import build

CONF = Path(__file__).parents[2] / "conf" / "tracking"


@pytest.mark.parametrize("name", ["default", "files"])
def test_each_file_builds_its_trackers(name):
    trackers = build(yaml.safe_load((CONF / f"{name}.yaml").read_text()), "tracking")
    assert set(trackers) == {"jsonl", "report", "cards", "progress"} | ({"wandb"} if name == "default" else set())
    assert trackers["report"].every_rounds == 10
