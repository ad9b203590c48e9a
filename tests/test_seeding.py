"""Draws that depend on what they are for, and on nothing else."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

from cltrain.seeding import derive_seed, hash_ids, numpy_generator, torch_generator


def reference(text: str, salt: int) -> float:
    """FNV-1a and SplitMix64, a byte at a time."""
    mask = 2**64 - 1
    value = 0xCBF29CE484222325 ^ (salt & mask)
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor & mask
    return ((value ^ value >> 31) >> 11) * 2.0**-53


@given(st.lists(st.text(max_size=12), max_size=20), st.integers(-(2**63), 2**63))
def test_hashes_are_those_of_the_definition(ids: list[str], salt: int) -> None:
    expected = [reference(i, salt) for i in ids]
    assert hash_ids(pa.array(ids, pa.string()), salt).tolist() == expected
    assert hash_ids(pa.array(["other", *ids], pa.large_string()).slice(1), salt).tolist() == expected
    assert (
        hash_ids(pa.chunked_array([pa.array(ids[:3], pa.string()), pa.array(ids[3:], pa.string())]), salt).tolist()
        == expected
    )


def test_numbers_are_hashed_as_they_are_written() -> None:
    assert np.array_equal(hash_ids(pa.array([1, 22]), 0), hash_ids(pa.array(["1", "22"]), 0))
    assert hash_ids(pa.array(["", None]), 0).tolist() == [reference("", 0)] * 2


def test_hashes_are_uniform_and_another_salt_is_another_draw() -> None:
    ids = pa.array([f"id-{i}" for i in range(100_000)])
    first, second = hash_ids(ids, 0), hash_ids(ids, 1)
    counts = np.histogram(first, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160, "chi-square of 99 degrees of freedom"
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_one_very_long_id_costs_no_memory() -> None:
    found = hash_ids(pa.array(["a"] * 1000 + ["b" * 100_000]), 0)
    assert found[0] == reference("a", 0)
    assert found[-1] == reference("b" * 100_000, 0)


def test_seeds_depend_on_every_name() -> None:
    seeds = {derive_seed(*names) for names in ((0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a", 2))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)
    assert torch.equal(
        torch.rand(3, generator=torch_generator(0, "a")), torch.rand(3, generator=torch_generator(0, "a"))
    )
    assert np.array_equal(numpy_generator(0, "a").random(3), numpy_generator(0, "a").random(3))
