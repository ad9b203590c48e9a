import pytest

from cltrain.tracking.history import Entry, cost, entries, overall, redacted, stateless_epochs, transfer
from cltrain.tracking.lineage import places
from cltrain.tracking.matrix import grouped, matrix, thin


def entry(rounds, version, at, fate, losses=(), parent=None, compared_to=None):
    row = [{"window": k, "rows": 1, "loss": v} for k, v in losses]
    data = {"version": version, "parent": parent, "compared_to": compared_to, "transfer": row}
    return Entry(version=version, round=rounds[at], fate=fate, data=data)


def test_fates(make):
    fates = {e.version: e.fate for e in entries(make.history(7))}
    assert fates == {"1.0": "promoted", "1.1": "promoted", "1.2": "promoted", "1.3": "promoted", "1.4": "promoted",
                     "1.5": "rejected", "1.6": "champion"}  # fmt: skip


def test_overall_weighs_by_rows_and_takes_rmse_from_squares():
    assert overall([{"rmse": 3.0, "rows": 1}, {"rmse": 1.0, "rows": 3}])["rmse"] == pytest.approx(3**0.5)
    assert overall([{"auc": None, "rows": 5}])["auc"] is None
    assert overall([]) == {"rows": 0}


def test_transfer_formulas_by_hand(make):
    rounds = make.history(3)
    found = [
        entry(rounds, "1.0", 0, "promoted", [(0, 0.5)]),
        entry(rounds, "1.1", 1, "promoted", [(0, 0.3), (1, 0.6)]),
        entry(rounds, "1.2", 2, "rejected", [(0, 0.0), (1, 0.0), (2, 0.0)]),
        entry(rounds, "1.3", 2, "champion", [(0, 0.4), (1, 0.8), (2, 0.3)]),
    ]
    t = transfer(found)
    assert t.mean == pytest.approx(0.5)
    assert t.backward == pytest.approx(((0.5 - 0.4) + (0.6 - 0.8)) / 2)
    assert t.forgetting == pytest.approx(((0.4 - 0.3) + (0.8 - 0.6)) / 2)


def test_transfer_without_versions_or_past():
    assert transfer([]).mean is None


def test_cost_counts_rows_offered_again_once(make):
    rounds = make.history(7)  # 5,000 rows, then 1,000 new ones a round; 1.5 of round 5 is rejected
    points = cost(rounds, epochs=2)
    histories = [5000, 6000, 7000, 8000, 9000, 10_000, 10_000]  # round 6 continues 1.4, with 1,000 fresh rows
    assert [p.from_scratch for p in points] == [2 * sum(histories[: i + 1]) for i in range(7)]
    assert points[-1].trained == 25_000 + 6 * 1500


def test_epochs_of_settings():
    assert stateless_epochs({"train": {"stateless": {"epochs": 5}}}) == 5
    assert stateless_epochs({"train": None}) == 1


def test_secrets_are_hidden():
    shown = redacted({"serve": {"admin_token": "abc", "tokenizer": "bert"}, "urls": ["s3://key:pw@bucket/x"]})
    assert shown == {"serve": {"admin_token": "…", "tokenizer": "bert"}, "urls": ["s3://key:…@bucket/x"]}


def test_lineage_places(make):
    rounds = make.history(4)
    found = [
        entry(rounds, "1.0", 0, "promoted"),
        entry(rounds, "1.1", 1, "rejected", parent="1.0"),
        entry(rounds, "1.2", 2, "promoted", parent="1.0"),
        entry(rounds, "2.0", 3, "champion", compared_to="1.2"),
        entry(rounds, "1.3", 3, "promoted", parent="1.0"),
    ]
    place = places(found)
    assert place["1.0"] == (0, 0)
    assert place["1.2"] == (2, 0)
    assert 0 < place["1.1"][1] < 1
    assert place["2.0"] == (3, 1)
    assert place["1.3"][1] >= 1  # a second branch of 1.0
    assert len(set(place.values())) == len(found)


def test_hundreds_of_versions_never_share_a_place(make):
    found = entries(make.history(300, windows=2))
    place = places(found)
    assert len(set(place.values())) == len(found)
    assert max(y for _, y in place.values()) < 8


def test_a_large_matrix_is_thinned_evenly_and_says_so(make):
    chart = matrix(entries(make.history(120)))
    cells = chart.variants[0]["data"][0]["z"]
    assert len(cells) == 60
    assert len(cells[0]) == 60
    assert "60 of" in chart.note
    assert "groups" in chart.note


def test_thin_and_group_keep_the_ends():
    assert thin(range(100), 5)[0] == 0
    assert thin(range(100), 5)[-1] == 99
    groups = grouped(list(range(100)), 7)
    assert [k for g in groups for k in g] == list(range(100))
    assert {len(g) for g in groups} == {14, 15}
