"""Say what is wrong with a setting, and what would be right."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from cltrain.config import CONF


def fail(error: Exception, config_name: str) -> NoReturn:
    """End the job with one line on standard error and exit code 2."""
    print(f"error: {explain(error, config_name)}", file=sys.stderr, flush=True)
    sys.exit(2)


def explain(error: Exception, config_name: str) -> str:
    """One line; an unknown setting is answered with the nearest one there is."""
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([\w.@/]+)'", text)
    if unknown is None:
        return re.sub(r"Config search path:.*", "", re.sub(r" _\w+(?= )", "", text)).strip()
    key = unknown.group(1)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        known = _keys(OmegaConf.to_container(compose(config_name)))
    if key in known:
        return f"{key} is a mapping, to which entries are added: +{key}={{NAME: VALUE}}"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{key}: there is no such setting; {hint}`python -m jobs.{config_name} --cfg job` shows all"


def _keys(settings: Any, path: str = "") -> list[str]:
    if not isinstance(settings, Mapping):
        return []
    found = [f"{path}{key}" for key in settings]
    return found + [deeper for key, value in settings.items() for deeper in _keys(value, f"{path}{key}.")]
