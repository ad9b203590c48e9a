import io
import logging
import sys

import pytest

from cltrain.errors import ConfigError
from cltrain.tracking.progress import Progress


def test_a_plain_line_for_each_round_and_nothing_on_standard_output(capsys, make, tmp_path):
    rounds = make.history(10)
    tracker = Progress()
    tracker.start(make.run_info(tmp_path), rounds[:1])
    for r in rounds[1:]:
        tracker.working("2013-01-08 00:00", "update stateful")
        tracker.finished(r)
    tracker.close(rounds, {})
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "flights: goes on after round 0"
    assert len(lines) == 10
    assert "1.1 accepted" in lines[1]
    assert "log loss 0.3804 (never updated 0.3930)" in lines[1]
    assert "waited (312 fresh labelled rows of 800 needed)" in lines[-1]


def test_a_live_line_lets_logging_through(monkeypatch, capsys, make, tmp_path):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler()
    logger = logging.getLogger("cltrain-test-progress")
    logger.addHandler(handler)
    rounds = make.history(3)
    tracker = Progress(live=True)
    tracker.start(make.run_info(tmp_path), [])
    assert handler.stream is not terminal
    for r in rounds:
        tracker.working("2013-01-08 00:00", "update [stateful]")
        logger.warning("a [bold]line[/bold]")
        tracker.finished(r)
    tracker.close(rounds, {})
    assert handler.stream is terminal
    logger.removeHandler(handler)
    assert terminal.getvalue().count("a [bold]line[/bold]") == 3
    assert "champion 1.2" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_wrong_setting_names_the_fix():
    with pytest.raises(ConfigError, match="per_second"):
        Progress(per_second=0)
