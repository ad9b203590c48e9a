"""The Serve application for the registry's champion: `python -m jobs.serve store.root=DIR [serve.port=N]`"""

from __future__ import annotations

import signal
import threading
from typing import Any

from cltrain.assemble import latest_store
from cltrain.config import build
from cltrain.errors import ConfigError
from cltrain.records import Json
from cltrain.registry import Registry, Store
from cltrain.registry.registry import models
from jobs.entry import job


@job("serve_app")
def main(settings: dict[str, Any]) -> Json:
    serving, cluster = build(settings["serve"], "serve"), build(settings["cluster"], "cluster")
    if not serving.needs_ray:
        raise ConfigError(
            "this job starts the application, which serve=running finds and serve=none has not: serve=local"
        )
    root, url = settings["store"]["root"], settings["store"]["url"]
    store = Store(root=root, url=url) if root and url else Store.at(root or latest_store())
    name = settings["model"]["name"] or _only(models(store), store.root)
    with cluster.session(serving.needs_ray, {"job": settings["name"], "model": name}):
        serving.start(store, name)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        try:
            print(f"serving {name} of {store.root} at {serving.url}; Ctrl-C stops it", flush=True)
            stopped.wait()
        finally:
            address = serving.url
            serving.stop()
    champion = Registry(store, name).champion()
    return {"model": name, "store": store.root, "url": address, "champion": champion.version if champion else None}


def _only(names: list[str], root: str) -> str:
    if len(names) == 1:
        return names[0]
    raise ConfigError(f"{root} holds {', '.join(names) or 'no model yet'}: pass model.name=NAME")


if __name__ == "__main__":
    main()
