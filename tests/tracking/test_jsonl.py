import json

import pytest

from cltrain.records import Round, from_json
from cltrain.tracking import jsonl
from cltrain.tracking.jsonl import Jsonl


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_earlier_rounds_come_first_and_each_round_is_there_when_it_ends(tmp_path, make):
    rounds = make.history(4)
    tracker = Jsonl()
    tracker.start(make.run_info(tmp_path), rounds[:2])
    assert [line["index"] for line in lines(tmp_path)] == [0, 1]
    tracker.finished(rounds[2])
    assert [line["index"] for line in lines(tmp_path)] == [0, 1, 2]
    tracker.finished(rounds[3])
    tracker.close(rounds, {})
    assert [from_json(Round, line) for line in lines(tmp_path)] == rounds


def test_a_resumed_job_replaces_a_torn_file(tmp_path, make):
    (tmp_path / "rounds.jsonl").write_text('{"index": 0, "win')
    rounds = make.history(1)
    Jsonl().start(make.run_info(tmp_path), rounds)
    assert [line["index"] for line in lines(tmp_path)] == [0]


def test_not_a_number_is_null(make):
    import dataclasses

    (round_,) = make.history(1)
    odd = dataclasses.replace(round_, seconds=float("nan"), versions=({"version": "1.0", "loss": float("inf")},))
    found = json.loads(jsonl.line(odd))
    assert found["seconds"] is None
    assert found["versions"][0]["loss"] is None


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b"whole\n")
    real = jsonl.os.write
    monkeypatch.setattr(jsonl.os, "write", lambda handle, data: real(handle, data[:3]))
    with pytest.raises(OSError, match="free some space"):
        jsonl.append(path, b"another\n")
    assert path.read_bytes() == b"whole\n"
