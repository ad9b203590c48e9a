"""What to do before there is anything to look at: which online test to run."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, cast, get_args

import typer

from cltrain.cli.options import app, out, print_json
from cltrain.errors import CltrainError, ConfigError
from cltrain.online.recommend import Answers, Situation
from cltrain.online.recommend import recommend as recommended


@app.command()
def recommend(
    answers: Annotated[str, typer.Option("--answers", help=f"What users get: {', '.join(get_args(Answers))}.")],
    units_per_day: Annotated[float, typer.Option("--units-per-day", help="Different users, or requests, a day.")],
    effect: Annotated[float, typer.Option("--effect", help="Smallest difference of the metric that matters.")],
    spread: Annotated[
        float | None, typer.Option("--spread", help="Standard deviation of the metric over units.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="For a metric that is 0 or 1: how often it is 1, instead of --spread."),
    ] = None,
    delay: Annotated[str, typer.Option("--delay", help="Until a label is there, such as 1h or 30d.")] = "1h",
    versions: Annotated[int, typer.Option("--versions", help="To compare, the champion among them.")] = 2,
    days: Annotated[float, typer.Option("--days", help="That you are ready to wait.")] = 28,
    level: Annotated[float, typer.Option("--level", help="Of false alarms, of all comparisons together.")] = 0.05,
    power: Annotated[float, typer.Option("--power", help="Chance to find the effect.")] = 0.8,
    pairing: Annotated[
        float, typer.Option("--pairing", help="Correlation of two versions' errors on one row, for shadow tests.")
    ] = 0.8,
    cycle: Annotated[str, typer.Option("--cycle", help="Traffic repeats itself by.")] = "7d",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which online test to run for a new version, on how many units, for how many days, and why. Needs no store."""
    try:
        if (spread is None) == (rate is None):
            raise ConfigError("pass either --spread, or --rate for a metric that is 0 or 1")
        if rate is not None:
            if not 0 < rate < 1:
                raise ConfigError(f"--rate must be above 0 and below 1, not {rate}")
            spread = (rate * (1 - rate)) ** 0.5
        situation = Situation(
            answers=cast(Answers, answers),
            units_per_day=units_per_day,
            effect=effect,
            spread=spread or 0.0,
            delay=delay,
            versions=versions,
            days=days,
            level=level,
            power=power,
            pairing=pairing,
            cycle=cycle,
        )
        found = recommended(situation)
    except CltrainError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if as_json:
        return print_json(asdict(found))
    needed = f"{found.units:,} units, {found.days} days" if found.units else f"{found.days} days, and no proof"
    settings = " ".join(f"{name}={value}" for name, value in found.settings.items())
    for line in (f"{found.test}: {needed}", found.reason, f"settings: {settings}"):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
