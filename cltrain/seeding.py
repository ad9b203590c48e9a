"""Every random draw has a named generator, derived from the run's seed and what the draw is for."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import torch

_PRIME = np.uint64(0x100000001B3)
_BASIS = np.uint64(0xCBF29CE484222325)


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on `seed` and on every name, and on nothing else.

    >>> derive_seed(0, "round", 3) == derive_seed(0, "round", 3) != derive_seed(0, "round", 4)
    True
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, *names))


def hash_ids(ids: pa.Array | pa.ChunkedArray, salt: int) -> np.ndarray:
    """A uniform number in [0, 1) for each id, (N,) float64: FNV-1a over its bytes, finished with SplitMix64.

    The same id and salt give the same number on every machine, in every table and in any order.
    """
    if len(ids) == 0:
        return np.empty(0)
    text = pa.concat_arrays([c.cast(pa.string()) for c in (ids.chunks if isinstance(ids, pa.ChunkedArray) else [ids])])
    _, offsets, content = text.buffers()
    place = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
    octets = np.frombuffer(content or b"", np.uint8)
    length = np.diff(place)
    # Longest first, so that the ids which reach a position are a prefix.
    order = np.argsort(-length, kind="stable") if length.min() != length.max() else np.arange(len(length))
    start, ends = place[:-1][order], np.searchsorted(-length[order], -np.arange(length.max()), side="left")
    value = np.full(len(text), _BASIS ^ np.uint64(salt & 0xFFFFFFFFFFFFFFFF))
    with np.errstate(over="ignore"):
        for position, end in enumerate(ends):
            some = value[:end]
            some ^= octets[start[:end] + position]
            some *= _PRIME
        value[order] = value.copy()
        value ^= value >> np.uint64(30)
        value *= np.uint64(0xBF58476D1CE4E5B9)
        value ^= value >> np.uint64(27)
        value *= np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53
