"""From rows to batches: gathered by index out of tensors that are in memory, on the device where they fit."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from cltrain.batch import UNKNOWN, Batch, join
from cltrain.data.encoder import Encoder
from cltrain.methods import Method
from cltrain.seeding import torch_generator
from cltrain.train.engines.plain import Plain
from cltrain.train.settings import Training
from cltrain.train.step import Part, Rows

CHUNK_ROWS = 65_536
GIB = 1 << 30


@dataclass(frozen=True)
class Draw:
    """One global batch: indices (int64) of new rows, and of rehearsed ones among the exemplars; `place` is the pass and
    the step in it."""

    new: Tensor
    old: Tensor | None
    place: tuple[int, int]


class Loader:
    """Makes the batches of this rank. With `ahead`, the next one is gathered (in pinned memory, for a GPU) and copied
    to the device while the one before it is trained on; without, rows and exemplars are on the device."""

    def __init__(
        self,
        rows: Batch,
        exemplars: Batch | None,
        *,
        engine: Plain,
        method: Method,
        accumulate: int = 1,
        ahead: bool = False,
        seed: int = 0,
    ) -> None:
        self.rows, self.exemplars, self.engine, self.method = rows, exemplars, engine, method
        self.accumulate, self.ahead, self.seed = accumulate, ahead, seed
        self._even = all(bool((b.weight == 1).all()) for b in (rows, exemplars) if b is not None)

    def batches(self, draws: Iterable[Draw]) -> Iterator[Rows]:
        if not self.ahead:
            yield from map(self.gather, draws)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as thread:
            waiting = None
            for draw in draws:
                coming = thread.submit(self.gather, draw)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()

    def gather(self, draw: Draw) -> Rows:
        """The rows of one step, on the device."""
        new, new_weight = self._share(self.rows, draw.new), self._weight(self.rows, draw.new)
        old: Batch | None = None
        old_weight: Tensor | float = 0.0
        reference: tuple[Batch, Tensor | float] | None = None
        if draw.old is not None and self.exemplars is not None:
            old, old_weight = self._share(self.exemplars, draw.old), self._weight(self.exemplars, draw.old)
            if self.method.augments:
                old = self.method.augment(old, torch_generator(self.seed, "augment", *draw.place, self.engine.rank))
            if self.method.projects:
                reference, old, old_weight = (old, old_weight), None, 0.0
        # As many parts on every rank, though the shares may differ by a row.
        count = min(self.accumulate, max(1, len(draw.new) // self.engine.world))
        parts = [_part(new, old)] if count == 1 else _parts(new, old, count)
        even = self._even and self.engine.world == 1 and len(parts) == 1
        return Rows(parts, new_weight, old_weight, even, reference)

    def _share(self, rows: Batch, index: Tensor) -> Batch:
        if self.engine.world == 1:
            batch = rows.take(index)
        elif len(mine := self.engine.shard(index)):
            batch = rows.take(mine)
        else:  # Every rank must take part in what the ranks do together: one row, which counts nothing.
            batch = rows.take(index[:1])
            batch = dataclasses.replace(batch, weight=torch.zeros_like(batch.weight))
        if self.ahead and self.engine.device.type == "cuda":
            return batch.each(Tensor.pin_memory).to(self.engine.device, non_blocking=True)
        return batch

    def _weight(self, rows: Batch, index: Tensor) -> Tensor | float:
        if self._even:
            return float(len(index))
        return rows.weight.index_select(0, index).sum().to(self.engine.device)


def _part(new: Batch, old: Batch | None) -> Part:
    if old is None:
        return Part(new, len(new), new.extra, {})
    return Part(join([new, old]), len(new), new.extra, old.extra)


def _parts(new: Batch, old: Batch | None, count: int) -> list[Part]:
    """A batch in `count` parts."""

    def part(of: Batch, i: int) -> Batch:
        return of.rows(len(of) * i // count, len(of) * (i + 1) // count)

    return [_part(part(new, i), None if old is None else part(old, i)) for i in range(count)]


def place(rows: Batch, engine: Plain, training: Training) -> tuple[Batch, bool]:
    """Rows where they will wait, and whether batches must be gathered ahead: see `Training.rows_on`."""
    host = training.rows_on == "host"
    if training.rows_on == "auto" and engine.device.type == "cuda":
        host = rows.num_bytes > torch.cuda.mem_get_info(engine.device)[0] / 2
    return (rows, True) if host else (rows.to(engine.device), False)


def encode(encoder: Encoder, table: pa.Table, memory_gib: float) -> Batch:
    """The rows as tensors; in a file that is mapped, without a name, where they would fill more than `memory_gib`."""
    if table.num_rows <= CHUNK_ROWS:
        return encoder(table)
    first = encoder(table.slice(0, CHUNK_ROWS))
    if first.num_bytes / CHUNK_ROWS * table.num_rows <= memory_gib * GIB:
        return encoder(table)
    with tempfile.TemporaryDirectory(prefix="cltrain-rows-") as folder:

        def mapped(like: Tensor, name: str) -> Tensor:
            shape = (table.num_rows, *like.shape[1:])
            size = table.num_rows * like[0].numel()
            file = str(Path(folder, name))
            return torch.from_file(file, shared=True, size=size, dtype=like.dtype).reshape(shape)

        names = iter(range(len(first.inputs) + 2))
        whole = first.each(lambda like: mapped(like, str(next(names))))
    for start in range(0, table.num_rows, CHUNK_ROWS):
        part = encoder(table.slice(start, CHUNK_ROWS))
        place = whole.rows(start, start + len(part))
        for name, value in part.inputs.items():
            place.inputs[name].copy_(value)
        place.target.copy_(part.target)
        place.weight.copy_(part.weight)
    return whole


def hide_categories(rows: Batch, rate: float, generator: torch.Generator) -> Batch:
    """The same rows with a random `rate` of their categories replaced by the unknown one, which thereby comes to mean
    "some category"."""
    categorical = rows.inputs.get("categorical")
    if categorical is None or not categorical.numel() or not rate:
        return rows
    mask = torch.rand(categorical.shape, generator=generator) < rate
    hidden = categorical.masked_fill(mask.to(categorical.device), UNKNOWN)
    return dataclasses.replace(rows, inputs={**rows.inputs, "categorical": hidden})
