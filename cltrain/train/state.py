"""All that a version is: what an update starts from and what it leaves, as files that anybody can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors.torch as st
from torch import Tensor

from cltrain.data.encoder import Encoder
from cltrain.data.schema import Columns, Feature, Schema
from cltrain.errors import DigestError
from cltrain.methods import MethodState
from cltrain.models.adapter import folded, joined, split
from cltrain.records import Cursor, from_json, to_json
from cltrain.storage import Storage, digest_bytes, digest_json, read_arrow
from cltrain.train.golden import Golden

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class State:
    """weights: the model's state dict, on the CPU. optimizer: its tensors by slot and parameter, such as
    `exp_avg/head.weight`. model: its settings with `_target_`. cursor: the rows it had the chance to learn from.
    adapter: settings of a low-rank adapter, and then `base` are the weights under it, which are stored once for all
    versions that share them."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    method: MethodState
    encoder: Encoder
    schema: Schema
    model: Mapping[str, Any]
    cursor: Cursor
    updates: int
    steps: int
    adapter: Mapping[str, Any] | None = None
    base: Mapping[str, Tensor] | None = None

    @property
    def served_weights(self) -> Mapping[str, Tensor]:
        """Those of the model that `model` makes, with the adapter folded in."""
        return self.weights if self.adapter is None else folded(self.weights, self.adapter["alpha"])


def save_state(state: State, storage: Storage, prefix: str, golden: Golden | None = None) -> str:
    """Write the state below `prefix/`, with its golden batch if it has one, and return the digest of its weights (of an
    adapted model, of its base and of what lies over it). `state.json`, which has the digests of the
    other files, is written last: a folder without it is not a state."""
    files: dict[str, str] = {}

    def put(name: str, data: bytes) -> None:
        files[name] = storage.write(f"{prefix}/{name}", data)

    base = None
    if state.base is None:
        put("weights.safetensors", st.save(_plain(state.weights)))
    else:
        put("weights.safetensors", st.save(_plain(split(state.weights, state.base))))
        data = st.save(_plain(state.base))
        base = digest_bytes(data)
        if not storage.exists(base_name(base)):
            storage.write(base_name(base), data)
    put("optimizer.safetensors", st.save(_plain(state.optimizer)))
    flat = {f"{slot}/{name}": value for slot, named in state.method.tensors.items() for name, value in named.items()}
    put("method.safetensors", st.save(_plain(flat)))
    put("encoder.json", json.dumps(state.encoder.to_json()).encode())
    if golden is not None:
        put("golden.json", json.dumps(golden.to_json()).encode())
    if state.method.memory is not None:
        name = f"{prefix}/memory.arrow"
        with storage.writing(name) as path:
            _write_memory(path, state.method.memory)
            files["memory.arrow"] = digest_bytes(path.read_bytes())
    storage.write_json(
        f"{prefix}/state.json",
        {
            "format": FORMAT,
            "files": files,
            "schema": asdict(state.schema),
            "model": state.model,
            "cursor": to_json(state.cursor),
            "updates": state.updates,
            "steps": state.steps,
            **({} if base is None else {"adapter": state.adapter, "base": base}),
        },
    )
    return _weights_digest(files, base)


def weights_digest(storage: Storage, prefix: str) -> str:
    """What `save_state` returned for this state, as its `state.json` has it."""
    about = storage.read_json(f"{prefix}/state.json")
    return _weights_digest(about["files"], about.get("base"))


def _weights_digest(files: Mapping[str, str], base: str | None) -> str:
    digest = files["weights.safetensors"]
    return digest if base is None else digest_json([base, digest])


def base_name(digest: str) -> str:
    return f"bases/{digest[:32]}.safetensors"


def _write_memory(path: Path, memory: pa.Table) -> None:
    """Compressed: most of a memory is that of the version before, and every version has its own."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, memory.schema, options=options) as writer:
        writer.write_table(memory)


def load_state(storage: Storage, prefix: str, only_weights: bool = False) -> State:
    """Read a state back; a file that is not the one recorded raises `DigestError`. With `only_weights` the optimizer,
    the memory and the method's tensors are left out, as serving needs no more."""
    about = storage.read_json(f"{prefix}/state.json")
    if about.get("format") != FORMAT:
        raise DigestError(f"{prefix} has format {about.get('format')}; this cltrain reads {FORMAT}")

    def get(name: str) -> bytes:
        data = storage.read(f"{prefix}/{name}")
        if digest_bytes(data) != about["files"][name]:
            raise DigestError(f"{storage.path(prefix)}/{name} was altered: its digest is not the recorded one")
        return data

    weights, base = _loaded(get("weights.safetensors")), None
    if "base" in about:
        data = storage.read(base_name(about["base"]))
        if digest_bytes(data) != about["base"]:
            raise DigestError(f"{storage.path(base_name(about['base']))} was altered: its digest is not its name")
        base = _loaded(data)
        weights = joined(base, weights)
    memory: pa.Table | None = None
    tensors: dict[str, dict[str, Tensor]] = {}
    optimizer: dict[str, Tensor] = {}
    if not only_weights:
        optimizer = _loaded(get("optimizer.safetensors"))
        for key, value in _loaded(get("method.safetensors")).items():
            slot, name = key.split("/", 1)
            tensors.setdefault(slot, {})[name] = value
        if "memory.arrow" in about["files"]:
            storage.check(f"{prefix}/memory.arrow", about["files"]["memory.arrow"])
            memory = read_arrow(storage.local_copy(f"{prefix}/memory.arrow"))
    return State(
        weights=weights,
        optimizer=optimizer,
        method=MethodState(memory=memory, tensors=tensors),
        encoder=Encoder.from_json(json.loads(get("encoder.json"))),
        schema=schema_from_json(about["schema"]),
        model=about["model"],
        cursor=from_json(Cursor, about["cursor"]),
        updates=about["updates"],
        steps=about["steps"],
        adapter=about.get("adapter"),
        base=base,
    )


def load_golden(storage: Storage, prefix: str) -> Golden | None:
    """The golden batch of a state, None where it was saved without one. Raises `DigestError` if it was altered."""
    files = storage.read_json(f"{prefix}/state.json")["files"]
    if "golden.json" not in files:
        return None
    data = storage.read(f"{prefix}/golden.json")
    if digest_bytes(data) != files["golden.json"]:
        raise DigestError(f"{storage.path(prefix)}/golden.json was altered: its digest is not the recorded one")
    return Golden.from_json(json.loads(data))


def schema_from_json(value: Mapping[str, Any]) -> Schema:
    columns: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value["columns"].items()}
    return Schema(
        columns=Columns(**columns),
        features=tuple(Feature(**f) for f in value["features"]),
        ignored=tuple(value["ignored"]),
    )


def state_name(request_digest: str) -> str:
    return f"states/{request_digest[:32]}"


def request_digest(request: Any) -> str:
    """Names a request by its content, so that doing it again writes the same folder."""
    return digest_json(to_json(request))


def _loaded(data: bytes) -> dict[str, Tensor]:
    """In the order of their names: the reader has another one in every process, and ranks go through them together."""
    return dict(sorted(st.load(data).items()))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
