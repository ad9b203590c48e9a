"""The script that lets bandits of other libraries play our replays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.online.peers import bandits

SCRIPT = Path(bandits.__file__)


class Always:
    """Chooses the first arm and remembers what it was told, and after how many decisions."""

    def __init__(self) -> None:
        self.decided, self.told = 0, []

    def choose(self, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.decided += len(context)
        return np.zeros(len(context), int), np.ones(len(context))

    def learn(self, labels: list) -> None:
        self.told += [(self.decided, at, reward) for at, _, _, reward, _ in labels]


def test_labels_come_when_they_are_due_or_never() -> None:
    delay = np.where(np.arange(400) % 10 == 0, np.inf, 60.0)
    policy = Always()
    regret = bandits.play(policy, np.tile([1.0, 0.0], (400, 1)), np.zeros((400, 0)), delay, np.random.default_rng(0))
    assert regret == 0
    assert all(at + 60 <= decided < at + 60 + bandits.PUBLISH for decided, at, _ in policy.told)
    assert not {at for _, at, _ in policy.told} & set(range(0, 400, 10))
    assert {reward for _, _, reward in policy.told} == {1.0}
    worse = bandits.play(Always(), np.tile([0.2, 0.5], (400, 1)), np.zeros((400, 0)), delay, np.random.default_rng(0))
    assert np.isclose(worse, 0.3 * 400)


def test_libraries_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    replays = tmp_path / "replays.npz"
    np.savez(replays, chances=np.ones((1, 50, 2)), context=np.zeros((1, 50, 0)), delay=np.ones((1, 50)))
    hidden = "import sys; sys.modules.update(vowpalwabbit=None, bayesianbandits=None); import runpy; "
    run = f"{hidden}sys.argv = {[str(SCRIPT), str(replays)]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}
    assert "vowpalwabbit" in done.stderr
    assert "bayesianbandits" in done.stderr
