"""Where an update stands in its middle, so that one that was killed goes on from there, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import safetensors.torch as st
import torch
from torch import Tensor

from cltrain.storage import Storage, digest_bytes
from cltrain.train.engines.plain import Plain


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`step` steps of pass number `epoch` are done, and `steps` in all, with `rows` visits of which `replayed` were of
    exemplars. `best_loss` and `best_passes` are those of `Best`. tensors: by kind and name, such as
    `weights/head.weight`, whole; own: of this rank alone, such as its share of the loss."""

    epoch: int
    step: int
    steps: int
    rows: int
    replayed: int
    best_loss: float | None
    best_passes: int
    tensors: Mapping[str, Tensor]
    own: Mapping[str, Tensor]

    def of(self, kind: str) -> dict[str, Tensor]:
        return {n.removeprefix(f"{kind}/"): v for n, v in self.tensors.items() if n.startswith(f"{kind}/")}


class Checkpoints:
    """Keeps the last checkpoint of one update in the folder `prefix`, for the ranks of `engine`. It is for the same
    number of ranks only: with another one the sums are taken in another order, and the update begins again."""

    def __init__(self, storage: Storage, prefix: str, engine: Plain, every: int | None) -> None:
        self.storage, self.prefix, self.engine, self.every = storage, prefix, engine, every

    def due(self, steps: int) -> bool:
        return self.every is not None and steps % self.every == 0

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it; all ranks must call this. The files of a rank are there before `checkpoint.json` names them."""
        name = f"{checkpoint.steps:012d}"
        own = {f"own/{name}": value.contiguous() for name, value in checkpoint.own.items()}
        own["random"] = torch.get_rng_state()
        if self.engine.device.type == "cuda":
            own["random_cuda"] = torch.cuda.get_rng_state(self.engine.device)
        self.storage.write(f"{self.prefix}/{name}-rank-{self.engine.rank}.safetensors", st.save(own))
        self.engine.sum(torch.zeros((), device=self.engine.device)).item()
        if self.engine.rank:
            return
        data = st.save({n: v.contiguous() for n, v in checkpoint.tensors.items()})
        numbers = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint) if f.name not in ("tensors", "own")}
        digest = self.storage.write(f"{self.prefix}/{name}.safetensors", data)
        before = self._about()
        self.storage.write_json(
            f"{self.prefix}/checkpoint.json",
            {"name": name, "digest": digest, "world": self.engine.world, "numbers": numbers},
        )
        if before is not None:
            self._forget(before)

    def load(self) -> Checkpoint | None:
        """The last one, with this rank's random numbers put back; None where there is none that fits."""
        about = self._about()
        if about is None or about["world"] != self.engine.world:
            return None
        data = self.storage.read(f"{self.prefix}/{about['name']}.safetensors")
        if digest_bytes(data) != about["digest"]:
            return None
        own = st.load(self.storage.read(f"{self.prefix}/{about['name']}-rank-{self.engine.rank}.safetensors"))
        torch.set_rng_state(own["random"])
        if "random_cuda" in own:
            torch.cuda.set_rng_state(own["random_cuda"], self.engine.device)
        mine = {name.removeprefix("own/"): value for name, value in own.items() if name.startswith("own/")}
        return Checkpoint(**about["numbers"], tensors=dict(sorted(st.load(data).items())), own=mine)

    def clear(self) -> None:
        """When the update has ended. Only rank 0 removes."""
        if not self.engine.rank and (about := self._about()) is not None:
            self.storage.delete(f"{self.prefix}/checkpoint.json")
            self._forget(about)

    def _about(self) -> dict | None:
        name = f"{self.prefix}/checkpoint.json"
        return self.storage.read_json(name) if self.storage.exists(name) else None

    def _forget(self, about: dict) -> None:
        for rank in range(about["world"]):
            self.storage.delete(f"{self.prefix}/{about['name']}-rank-{rank}.safetensors")
        self.storage.delete(f"{self.prefix}/{about['name']}.safetensors")
