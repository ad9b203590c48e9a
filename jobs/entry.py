"""What all jobs share: settings from Hydra, an error in one line, the path of the summary as the last line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cltrain.config import CONF, register_defaults
from cltrain.errors import CltrainError
from cltrain.records import Json
from cltrain.storage import Storage


def job(config_name: str) -> Callable[[Callable[[dict[str, Any]], Json]], Callable[[], None]]:
    """Make a Hydra entry point of a function from plain settings to a summary. Errors that a user can act on end the job
    with their message alone, and exit code 2."""

    def decorate(function: Callable[[dict[str, Any]], Json]) -> Callable[[], None]:
        def run(config: DictConfig) -> None:
            try:
                run_dir = HydraConfig.get().runtime.output_dir
                summary = function(plain(config) | {"run_dir": run_dir})
                Storage(run_dir).write_json("summary.json", summary)
            except (CltrainError, OmegaConfBaseException) as error:
                logging.getLogger(__name__).debug("the job failed", exc_info=error)
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
            sys.stdout.flush()
            print(Path(run_dir, "summary.json").absolute(), flush=True)

        register_defaults()
        return hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run)

    return decorate


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved settings as plain dicts and lists; Hydra ends here."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}
