"""Settings of a job with other overrides than those of its command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cltrain.backtest.strategy import Composed
from cltrain.errors import ConfigError


class Composer:
    """Settings of the job `root` from the overrides `given` on the command line and others on top of them. Files are
    composed once for each choice of them, which takes Hydra a second; values are then set within what they gave."""

    def __init__(self, root: str, given: Sequence[str]) -> None:
        self._root, self._given = root, list(given)
        self._known: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> Composed:
        """Raises `ConfigError` where an override does not fit."""
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            values = [o for o in parsed if "." in o.key_or_group and not (o.is_add() or o.is_delete())]
            files = tuple(str(o.input_line) for o in parsed if o not in values)
            if files not in self._known:
                self._known[files] = self._composed(files)
            config = copy.deepcopy(self._known[files])
            choices = dict(config.hydra.runtime.choices)
            for value in values:
                OmegaConf.update(config, value.key_or_group, value.value(), merge=False)
            keys = [str(key) for key in config if key != "hydra"]
            settings = OmegaConf.to_container(OmegaConf.masked_copy(config, keys), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(" ".join(str(error).split())) from error
        return Composed({str(key): value for key, value in settings.items()}, choices)  # type: ignore[union-attr]

    def _composed(self, files: Sequence[str]) -> DictConfig:
        keys = {override.partition("=")[0].lstrip("+") for override in files}
        kept = [o for o in self._given if o.partition("=")[0].lstrip("+") not in keys and not o.startswith("backtest.")]
        return compose(self._root, [*kept, *files], return_hydra_config=True)
