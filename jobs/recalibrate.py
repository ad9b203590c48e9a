"""One stateless update by hand: `python -m jobs.recalibrate base=1.1 reason='new sensor' [overrides]`"""

from __future__ import annotations

from typing import Any

from cltrain.assemble import run_by_hand
from cltrain.records import Json
from jobs.entry import job


@job("recalibrate")
def main(settings: dict[str, Any]) -> Json:
    return run_by_hand(settings, "stateless")


if __name__ == "__main__":
    main()
