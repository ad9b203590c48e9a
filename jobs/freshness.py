"""The value of data freshness, and how often to update: `python -m jobs.freshness [overrides]`"""

from __future__ import annotations

from typing import Any

from cltrain.freshness_job import run_freshness
from cltrain.records import Json
from jobs.entry import job


@job("freshness")
def main(settings: dict[str, Any]) -> Json:
    return run_freshness(settings)


if __name__ == "__main__":
    main()
