"""Search for better settings, and make the best ones a challenger: `python -m jobs.search [overrides]`"""

from __future__ import annotations

from typing import Any

from cltrain.assemble import run_search
from cltrain.records import Json
from jobs.entry import job


@job("search")
def main(settings: dict[str, Any]) -> Json:
    return run_search(settings)


if __name__ == "__main__":
    main()
