"""One stateful update by hand: `python -m jobs.update base=1.1 reason='new sensor' [overrides]`"""

from __future__ import annotations

from typing import Any

from cltrain.assemble import run_by_hand
from cltrain.records import Json
from jobs.entry import job


@job("update")
def main(settings: dict[str, Any]) -> Json:
    return run_by_hand(settings, "stateful")


if __name__ == "__main__":
    main()
