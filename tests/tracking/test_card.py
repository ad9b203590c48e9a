"""The report card as a page and as JSON."""

import dataclasses
import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from cltrain.records import Comparison, Finding, ReportCard, Verdict, from_json
from cltrain.tracking.card import render
from cltrain.tracking.card_text import changed, sentence
from cltrain.tracking.cards import Cards
from cltrain.tracking.review import Review, changes, document, schema

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--enable-logging=stderr",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=6000",
    "--window-size=800,9200",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]


def comparison(name: str, difference: float, wide: float = 0.01, **more) -> Comparison:
    bounds = {"low": difference - wide, "high": difference + wide}
    auc = {"difference": -difference, "low": -difference - wide, "high": -difference + wide, "higher_is_better": True}
    return Comparison(
        name=name, rows=420, challenger={"log_loss": 0.5 + difference, "auc": 0.8 - difference, "rows": 420},
        champion={"log_loss": 0.5, "auc": 0.8, "rows": 420}, difference=difference, metrics={"auc": auc},
        flips={"negative": 0.02, "positive": 0.05}, **bounds, **more,
    )  # fmt: skip


def review(said: str = "", **more) -> Review:
    curve = [{"predicted": p, "observed": p * 0.9, "rows": 40.0} for p in (0.1, 0.5, 0.9)]
    answer = {"prediction": 0.7, "loss": 0.3}
    card = ReportCard(
        comparisons=(comparison("window", -0.03), comparison("past", 0.002)),
        slices=(
            comparison(f"shop == 'a'{said}", -0.02, where="shop == 'a'"),
            comparison(f"worse than the champion: x < 0{said}", 0.05, where="x < 0", found=True),
        ),
        transfer=tuple({"window": i, "rows": 100, "loss": 0.5, "champion": 0.48, "constant": 0.69} for i in range(4)),
        latency_ms=0.5,
        size_bytes=22_676,
        champion_latency_ms=0.4,
        champion_size_bytes=22_676,
        findings=(
            Finding(name=f"price up, demand not up{said}", kind="directional", rows=200, failed=9, bound=0.01,
                    passed=False, champion_failed=2, examples=({"price": 3.25, "note": said},)),
            Finding(name="a feature is missing", kind="robustness", rows=3, failed=0, bound=0.0, passed=True),
        ),
        reliability={"challenger": curve, "champion": curve},
        importance=({"feature": f"x{said}", "rise": 0.1, "error": 0.01}, {"feature": "z", "rise": 0.0, "error": 0.01}),
        spots=({"id": f"7{said}", "why": "disagreement", "label": 1.0, "challenger": answer, "champion": answer,
                "features": {"x": 0.25, "shop": said}},),
    )  # fmt: skip
    reasons = (f"window: -0.03 [-0.04, -0.02] on 420 rows, margin 0.01{said}", "tests: refused, 1 of 2 failed")
    approval = {"state": "awaiting", "roles": ["owner", "risk"], "missing": "1 of risk", "signed": [
        {"by": f"ann{said}", "role": "owner", "comment": "looked at it", "at": "2024-03-01T09:00:00+00:00"},
    ]}  # fmt: skip
    return dataclasses.replace(
        Review(
            model=f"flights{said}", version="1.4", task="binary", metric="log_loss", kind="stateful", parent="1.3",
            compared_to="1.3", verdict=Verdict(accepted=False, reasons=reasons, score=-0.03), card=card,
            reason=f"a window ended{said}", fate="rejected",
            data={"rows": 900, "late_rows": 31, "late_labels": 44, "snapshot": "abc", "problems": [said]},
            training={"rows": 900, "rows_trained": 1800, "rows_replayed": 300, "seconds": 2.5, "seed": 7},
            transfer={"average": 0.5, "backward": 0.01, "forward": 0.2, "forgetting": -0.02},
            lineage=({"version": "1.0", "kind": "stateless"}, {"version": "1.4", "kind": "stateful"}), ancestors=4,
            approval=approval, provenance={"code": "c0ffee", "packages": {"torch": "2.13"}},
        ),
        **more,
    )  # fmt: skip


class Text(HTMLParser):
    """What one reads where no script runs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said, self.quiet = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.quiet = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.quiet = False

    def handle_data(self, data):
        self.said += "" if self.quiet else data + " "


def test_the_page_says_everything_without_scripts():
    said = re.sub(r"\s+", " ", Text(render(review())).said)
    for piece in (
        "Rejected by the rules: tests. Its log loss on 420 new held-out rows is 6 % better than that of champion 1.3, "
        "and its interval of 90 % leaves 0 out.",
        "✗ tests 1 of 2 failed",
        "Still to come: 1 of risk",
        "ann owner 2024-03-01 09:00 looked at it",
        "Got worse: 2 log loss on x < 0 found +0.0500 [+0.0400, +0.0600] · 420 rows",
        "better −0.0300 [−0.0400, −0.0200] 0.4700 0.5000",
        "worse than the champion: x < 0 found 420 rows",
        "+0.0200 against the champion",
        "−0.0200 forgetting",
        "price up, demand not up failed directional 9 of 200 2 1 % price 3.25",
        "disagreement 1 0.7 0.7 x 0.25",
        "late rows trained on 31",
        "1,800 900 rows · 300 replayed · 2.5 s",
        "0.5 ms champion 0.4 ms",
        "torch 2.13",
        "1.0 stateless, 3 more",
    ):
        assert piece in said, piece
    assert (
        said.index("Verdict") < said.index("What changed") < said.index("Metrics") < said.index("Where it comes from")
    )


def test_the_json_is_valid_and_is_read_back():
    found = json.loads(json.dumps(document(review()), allow_nan=False))
    jsonschema.validate(found, schema())
    assert document(from_json(Review, found)) == found
    with pytest.raises(jsonschema.ValidationError, match="accepted"):
        jsonschema.validate(found | {"verdict": {"reasons": []}}, schema())


def test_one_file_has_all_and_a_light_one_names_the_script_beside_it():
    whole, light = render(review()), render(review(), shared_script=True)
    assert whole.count("plotly.js v") == 1
    assert "<script src" not in whole
    assert len(light) < 100_000
    assert '<script src="plotly.min.js"></script>' in light
    assert "default-src 'none'; script-src 'self' 'unsafe-inline'" in html.unescape(light)


@pytest.mark.parametrize("card", [
    ReportCard(comparisons=(), transfer=(), latency_ms=0.0, size_bytes=0),
    ReportCard(comparisons=(Comparison(name="window", rows=9, challenger={"rmse": 2.0, "rows": 9}),),
               transfer=({"window": 0, "rows": 9, "loss": 4.0},), latency_ms=0.1, size_bytes=4),
    ReportCard(comparisons=(Comparison(name="window", rows=0, challenger={"rows": 0}, champion={"rows": 0}),),
               transfer=(), latency_ms=0.1, size_bytes=4),
])  # fmt: skip
def test_cards_with_little_on_them(card):
    verdict = Verdict(accepted=True, reasons=("there is no champion yet",))
    bare = Review(model="m", version="1.0", task="regression", metric="rmse", kind="stateless", parent=None,
                  compared_to=None, verdict=verdict, card=card)  # fmt: skip
    page = render(bare)
    assert "There was no champion to hold it against" in page
    jsonschema.validate(document(bare), schema())


def test_what_got_better_and_worse_comes_from_the_intervals():
    found = changes(review().card)
    assert [(c.where, c.metric, c.direction) for c in found[:4]] == [
        ("new window", "log_loss", "better"), ("new window", "auc", "better"),
        ("past windows", "log_loss", "unsure"), ("past windows", "auc", "unsure"),
    ]  # fmt: skip
    assert [group["total"] for group in changed(found)] == [2, 4, 2]
    same = dataclasses.replace(comparison("window", 0.0, wide=0.0), metrics={})
    exact = dataclasses.replace(review().card, comparisons=(same,), slices=())
    assert "exactly like champion 1.3" in sentence(review(card=exact), changes(exact))


def test_names_of_users_are_escaped():
    page = render(review(said="</script><script>alert(1)</script><img src=x onerror=alert(2)>"))
    assert "<script>alert" not in page
    assert "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
def test_a_browser_draws_a_light_card_and_nothing_is_wider_than_a_phone(make, tmp_path):
    rounds = make.history(3)
    tracker = Cards()
    tracker.start(make.run_info(tmp_path), rounds[:2])
    tracker.finished(rounds[2])
    folder = tmp_path / "cards"
    page = folder / "1.2.html"
    page.write_text(render(review(), shared_script=True))
    probe = """<iframe id=f src=cards/1.2.html style='width:390px;height:9000px'></iframe><script>
      setTimeout(() => { const d = document.getElementById("f").contentDocument;
        document.title = "wide " + d.documentElement.scrollWidth + " drawn " + d.querySelectorAll(".main-svg").length;
      }, 3000)</script>"""
    (tmp_path / "probe.html").write_text(probe)
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'home'}", "--dump-dom",
         (tmp_path / "probe.html").as_uri()], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    wide, drawn = map(int, re.search(r"<title>wide (\d+) drawn (\d+)", done.stdout).groups())
    assert (wide, drawn >= 8) == (390, True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_each_version_of_a_round_gets_its_card(make, tmp_path):
    rounds = make.history(13)
    tracker = Cards()
    tracker.start(make.run_info(tmp_path), rounds[:12])
    tracker.finished(rounds[12])
    names = [str(v["version"]) for v in rounds[12].versions]
    assert len(names) == 2
    assert sorted(p.name for p in (tmp_path / "cards").iterdir()) == sorted(
        ["plotly.min.js", *(f"{name}.{ending}" for name in names for ending in ("html", "json"))]
    )
    found = json.loads((tmp_path / "cards" / f"{names[0]}.json").read_text())
    jsonschema.validate(found, schema())
    known = from_json(Review, found)
    assert (known.version, known.data["round"], known.compared_to) == (names[0], 12, rounds[11].champion)
    assert known.lineage[0] == {"version": "1.0", "kind": "stateless"}
    assert known.transfer["forgetting"] == pytest.approx(found["transfer"]["forgetting"])
    assert len(known.card.comparisons) == 2
