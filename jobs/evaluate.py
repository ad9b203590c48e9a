"""Weigh one version against another: `python -m jobs.evaluate version=2.1 against=champion [overrides]`"""

from __future__ import annotations

from typing import Any

from cltrain.assemble import run_evaluation
from cltrain.records import Json
from jobs.entry import job


@job("evaluate")
def main(settings: dict[str, Any]) -> Json:
    return run_evaluation(settings)


if __name__ == "__main__":
    main()
