"""Text as numbers: the words of each row, hashed. There is no vocabulary to fit, to keep or to grow."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PADDING = 0
BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}_]+"
BETWEEN_ASCII = r"[^0-9a-z_]+"  # the same for lower-case ASCII; the other one takes a millisecond to compile


def tokens(column: pa.ChunkedArray, buckets: int, max_tokens: int) -> np.ndarray:
    """(N, max_tokens) int64: the first words (runs of letters, digits and underscores, in lower case) of each text as
    numbers from 1 to `buckets` - 1, then `PADDING`; all of it where the text is null. Equal words have equal numbers
    everywhere and for ever (CRC-32), and so may different ones.

    >>> tokens(pa.chunked_array([["To be, or not to be!", None]]), 1000, 6)
    array([[379, 356, 501,  39, 379, 356],
           [  0,   0,   0,   0,   0,   0]])
    """
    found = np.full((len(column), max_tokens), PADDING)
    lower = pc.utf8_lower(pc.fill_null(column, ""))
    plain = pc.all(pc.string_is_ascii(lower)).as_py()
    lists = pc.split_pattern_regex(lower, BETWEEN_ASCII if plain else BETWEEN_WORDS)
    words = pc.list_flatten(lists).combine_chunks().dictionary_encode()
    hashed = np.array([_hashed(word, buckets) for word in words.dictionary.to_pylist()], np.int64)
    number = hashed[np.asarray(words.indices)]
    row = np.repeat(np.arange(len(column)), np.asarray(pc.list_value_length(lists)))[number != PADDING]
    number = number[number != PADDING]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < max_tokens
    found[row[kept], place[kept]] = number[kept]
    return found


def _hashed(word: str, buckets: int) -> int:
    return 1 + zlib.crc32(word.encode()) % (buckets - 1) if word else PADDING


def looks_like_text(column: pa.ChunkedArray) -> bool:
    """Whether values of several words (three or more on average) that mostly differ are in a column of strings."""
    values = pc.unique(column.drop_null())
    if not len(values) or len(values) < len(column) / 2:
        return False
    return bool(pc.mean(pc.count_substring_regex(values, r"\S+")).as_py() >= 3)
