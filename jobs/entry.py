"""What all jobs share: settings from Hydra, an error in one line, the path of the summary as the last line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cltrain.config import CONF, register_defaults
from cltrain.errors import CltrainError, ConfigError
from cltrain.records import Json
from cltrain.storage import Storage
from jobs.explain import fail


def job(config_name: str) -> Callable[[Callable[[dict[str, Any]], Json]], Callable[[], None]]:
    """Make an entry point of a function from plain settings to a summary. What a user can mend ends the job with one
    line and exit code 2."""

    def decorate(function: Callable[[dict[str, Any]], Json]) -> Callable[[], None]:
        def run(config: DictConfig) -> None:
            run_dir = HydraConfig.get().runtime.output_dir
            try:
                summary = function(plain(config) | {"run_dir": run_dir})
                Storage(run_dir).write_json("summary.json", summary)
            except (CltrainError, OmegaConfBaseException) as error:
                fail(error, config_name)  # here, since Hydra would print a line of its own first
            sys.stdout.flush()
            print(Path(run_dir, "summary.json").absolute(), flush=True)

        def main() -> None:
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here, not to Hydra's printer
            try:
                register_defaults()
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run)()
            except (CltrainError, HydraException, OmegaConfBaseException) as error:
                fail(error, config_name)

        return main

    return decorate


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved settings as plain dicts and lists; Hydra ends here."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not set: pass {missing[0]}=VALUE")
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}
