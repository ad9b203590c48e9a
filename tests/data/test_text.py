"""Words become numbers, the same ones everywhere."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.data.text import looks_like_text, tokens


def of(*texts: str | None, buckets: int = 1000, length: int = 4) -> list[list[int]]:
    return tokens(pa.chunked_array([pa.array(texts, pa.large_string())]), buckets, length).tolist()


def word(text: str, buckets: int = 1000) -> int:
    return 1 + zlib.crc32(text.encode()) % (buckets - 1)


def test_words_are_hashed_in_their_order_and_rows_are_padded_and_cut() -> None:
    assert of("To be, or", None, "", "?!", " a b  c d e") == [
        [word("to"), word("be"), word("or"), 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [word("a"), word("b"), word("c"), word("d")],
    ]
    assert of() == []


def test_letters_of_any_language_make_words() -> None:
    assert of("Größe ÜBER é_1", "नमस्ते दुनिया") == [
        [word("größe"), word("über"), word("é_1"), 0],
        [word("नमस्ते"), word("दुनिया"), 0, 0],
    ]


@given(st.lists(st.one_of(st.none(), st.text(max_size=12)), max_size=8))
def test_a_row_is_the_same_alone_and_among_others(texts: list[str | None]) -> None:
    together = of(*texts, buckets=7)
    assert together == [of(text, buckets=7)[0] for text in texts]
    assert np.array(together, dtype=int).max(initial=0) < 7


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["the cat sat", "a dog ran off", "no one came back"], True),
        (["the cat sat"] * 9, False),
        (["New York", "Boston", "Chicago"], False),
        ([None, None], False),
    ],
)
def test_what_looks_like_text(values: list[str | None], found: bool) -> None:
    assert looks_like_text(pa.chunked_array([pa.array(values, pa.string())])) is found
