"""The source of Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from cltrain.data.parquet import ParquetSource
from cltrain.errors import ConfigError, DataError

Write = Callable[..., Path]
TABLE = pa.table({"at": [1, 2, 3], "y": [0, 1, 0], "x": [1.0, 2.0, 3.0]})


def source(path: object) -> ParquetSource:
    return ParquetSource(path=str(path), event_time="at", label="y")


def test_files_are_found_at_any_depth_and_what_other_tools_leave_is_not_taken(write: Write) -> None:
    names = ["b.parquet", "a/deep/c.parquet", "region=eu/d.parquet", "UPPER.PARQUET"]
    others = ["_temporary/e.parquet", ".hidden/f.parquet", "_meta.parquet", ".b.parquet.crc"]
    for name in names + others:
        folder = write(TABLE, name)
    (folder / "_SUCCESS").touch()
    (folder / "notes.txt").write_text("hello")
    assert source(folder).files() == sorted(names)
    assert source(folder / "b.parquet").files() == [""]


def test_a_path_that_is_not_set_or_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.path is not set"):
        source("")
    with pytest.raises(DataError, match=r"nowhere: there is no such folder or file"):
        source(tmp_path / "nowhere").files()
    with pytest.raises(DataError, match=r"data.path=nosuch://bucket cannot be read"):
        source("nosuch://bucket").files()


def test_an_empty_folder_says_what_is_there_instead(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder holds no .parquet file, but nothing at all"):
        source(tmp_path).files()
    (tmp_path / "events.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"no .parquet file, but 1 other file\(s\), such as events.csv"):
        source(tmp_path).files()


def test_folders_named_after_a_value_are_columns(write: Write) -> None:
    name = "region=north%20sea/shard=7/day=2024-01-31/none=__HIVE_DEFAULT_PARTITION__/a.parquet"
    made = source(write(TABLE, name))
    (_, batch), *_ = made.read(name)
    assert batch.to_pylist()[0] == {
        "at": 1,
        "y": 0,
        "x": 1.0,
        "region": "north sea",
        "shard": 7,
        "day": date(2024, 1, 31),
        "none": None,
    }
    assert made.schema(name) == batch.schema
    assert [b.to_pydict() for _, b in made.read(name, ["shard"])] == [{"shard": [7, 7, 7]}]


def test_a_column_of_the_file_wins_over_its_folder(write: Write) -> None:
    made = source(write(TABLE, "x=9/a.parquet"))
    assert [b.column("x").to_pylist() for _, b in made.read("x=9/a.parquet")] == [[1.0, 2.0, 3.0]]


def test_columns_are_chosen_by_their_whole_name(write: Write) -> None:
    made = source(write(pa.table({"a": [1], "a.b": [2], "a b": [3], "ä": [4]})))
    for name, value in (("a.b", 2), ("a b", 3), ("ä", 4), ("a", 1)):
        ((_, batch),) = made.read("a.parquet", [name, "absent"])
        assert batch.column(name).to_pylist() == [value]


def test_parts_can_be_read_alone(write: Write) -> None:
    table = pa.table({"n": range(300_000)})
    made = source(write(table, row_group_size=40_000))
    read = list(made.read("a.parquet"))
    assert sorted({part for part, _ in read}) == [0, 1, 2, 3], "two row groups of 40 000 fill a batch"
    whole = [n for _, batch in read for n in batch.column("n").to_pylist()]
    assert whole == list(range(300_000))
    third = [n for _, batch in made.read("a.parquet", ["n"], [2]) for n in batch.column("n").to_pylist()]
    assert third == list(range(160_000, 240_000))
