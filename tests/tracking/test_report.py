import dataclasses
import html
import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cltrain.errors import ConfigError
from cltrain.tracking.report import HtmlReport, render

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--enable-logging=stderr",
    "--disable-dev-shm-usage",
    "--window-size=1280,9000",
    "--virtual-time-budget=8000",
]


def browse(page: Path, home: Path, *flags: str) -> tuple[str, str]:
    """DOM after scripts ran, and what the browser logged. All host names lead nowhere."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={home}", "--host-resolver-rules=MAP * ~NOTFOUND", *flags]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(home)},
    )
    return done.stdout, done.stderr


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
@pytest.mark.parametrize(("rounds", "task", "charts"), [(26, "binary", 5), (1, "regression", 3)])
def test_a_browser_draws_every_chart_without_errors_or_network(tmp_path, make, rounds, task, charts):
    history = make.history(rounds, task)
    page = tmp_path / "report.html"
    page.write_text(render(make.run_info(tmp_path, task), history, make.summary(history)))
    dom, said = browse(page, tmp_path / "home")
    body = dom[dom.index("<main") : dom.index("<footer")]
    assert body.count("js-plotly-plot") == charts
    assert body.count('class="main-svg"') >= 2 * charts
    assert body.count('class="scatterlayer') >= charts
    assert "CONSOLE" not in said, [line for line in said.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
def test_buttons_show_numbers_switch_metrics_and_filter_rounds(tmp_path, make):
    text = render(make.run_info(tmp_path), make.history(10))
    clicks = """<script>
      document.getElementById("toggle-prequential").click();
      document.querySelector('[data-chart="prequential"] [data-key="auc"]').click();
      const f = document.getElementById("filter"); f.value = "waited"; f.dispatchEvent(new Event("change"));
    </script></body>"""
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", clicks))
    dom, said = browse(page, tmp_path / "home")
    assert "CONSOLE" not in said
    numbers = dom[dom.index('id="numbers-prequential"') :]
    assert numbers.index("<td") < numbers.index("</section>")
    assert re.search(r'data-key="auc" aria-pressed="true"', dom)
    shown = [row for row in re.findall(r"<tr data-status=[^>]*>", dom) if "hidden" not in row]
    assert shown == ['<tr data-status="waited">']


def test_the_page_is_one_file_that_asks_for_nothing(make, tmp_path):
    page = render(make.run_info(tmp_path), make.history(3))

    class Links(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found += [
                f"{tag} {v}" for k, v in attrs if k in ("src", "href", "srcset") and not (v or "").startswith("data:")
            ]

    Links().feed(page)
    assert Links.found == []
    assert "default-src 'none'" in page
    assert page.count("plotly.js v") == 1


def test_names_of_users_are_escaped(make, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    settings = {"data": {"label": evil}, evil: 1}
    run = make.run_info(tmp_path, model=evil, name=evil, store=evil, settings=settings)
    page = render(run, make.history(21, said=evil))
    assert "<script>alert" not in page
    assert "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert html.escape(evil, quote=False)[:20] in page


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
def test_a_browser_runs_no_script_of_users(make, tmp_path):
    evil = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    page = tmp_path / "report.html"
    page.write_text(render(make.run_info(tmp_path, model=evil), make.history(21, said=evil)))
    dom, _ = browse(page, tmp_path / "home")
    assert "<title>owned" not in dom


@pytest.mark.parametrize("count", [0, 1, 2, 15])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_short_histories_of_every_task(make, tmp_path, task, count):
    page = render(make.run_info(tmp_path, task), make.history(count, task))
    assert "<h1>flights</h1>" in page
    assert ("No round has ended yet" in page) == (count == 0)


def test_a_history_without_versions_and_with_missing_metrics(make, tmp_path):
    bare = [
        dataclasses.replace(
            r,
            status="failed",
            versions=(),
            champion=None,
            roll_out=None,
            observation=dataclasses.replace(r.observation, prequential={"log_loss": None, "rows": 0}, static={}),
        )
        for r in make.history(3)
    ]
    page = render(make.run_info(tmp_path), bare)
    assert "There is no version yet" in page
    assert "There is no champion yet" in page


def test_every_quiet_round_shows_its_reason(make, tmp_path):
    page = render(make.run_info(tmp_path), make.history(22))
    assert "312 fresh labelled rows of 800 needed" in page
    assert "the window has no events" in page
    assert "31 % null, at most 5 % expected" in page
    assert page.count('<tr data-status="') == 22


def test_numbers_of_the_page(make, tmp_path):
    rounds = make.history(6)
    page = render(make.run_info(tmp_path), rounds, make.summary(rounds))
    assert "log loss 0.4321, 13.4 % lower than the 0.4987 of the first champion" in page
    assert "epochs: 5" in page
    found = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
    charts = {c["id"]: c for c in json.loads(found[1])}
    assert set(charts) == {"prequential", "verdicts", "lineage", "transfer", "cost"}
    assert [v["key"] for v in charts["prequential"]["variants"]] == ["log_loss", "auc", "accuracy", "brier", "ece"]
    assert charts["cost"]["rows"][0][2:4] == [25_000, 25_000]
    assert charts["lineage"]["rows"][1][:4] == ["1.1", 1, "stateful", "1.0"]


def test_five_hundred_rounds_stay_below_8_mb(make, tmp_path):
    assert len(render(make.run_info(tmp_path), make.history(500, windows=60)).encode()) < 8e6


def test_written_every_few_rounds_and_at_the_end(make, tmp_path):
    rounds = make.history(5)
    tracker = HtmlReport(every_rounds=2)
    tracker.start(make.run_info(tmp_path), rounds[:1])
    page = tmp_path / "report.html"
    assert not page.exists()
    tracker.finished(rounds[1])
    assert "still running" in page.read_text()
    assert "2 rounds" in page.read_text()
    tracker.finished(rounds[2])
    assert "2 rounds" in page.read_text()
    tracker.close(rounds, make.summary(rounds))
    assert "finished" in page.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_wrong_setting_names_the_fix():
    with pytest.raises(ConfigError, match="every_rounds must be 0"):
        HtmlReport(every_rounds=-1)
