"""The main job: keep a model fresh, window after window. `python -m jobs.loop [overrides]`"""

from __future__ import annotations

from typing import Any

from cltrain.assemble import run_loop
from cltrain.records import Json
from jobs.entry import job


@job("loop")
def main(settings: dict[str, Any]) -> Json:
    return run_loop(settings)


if __name__ == "__main__":
    main()
