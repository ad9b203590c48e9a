"""Columns of images and of text, from files to tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cltrain.data import parquet as parquet_module
from cltrain.data import snapshot as snapshot_module
from cltrain.data.encoder import Encoder, fit_encoder, outline, request_table
from cltrain.data.event_log import EventLog
from cltrain.data.schema import Columns, Feature, Schema, event_table, infer_schema
from cltrain.data.snapshot import Snapshots, SnapshotSettings
from cltrain.data.values import tensor_form, tensors, with_lengths
from cltrain.errors import ConfigError, DataError, SchemaError
from cltrain.storage import Storage, canonical_json

Write = Callable[..., Path]
LogOf = Callable[..., EventLog]
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) * 10
NESTED = pa.list_(pa.list_(pa.uint8(), 4), 3)


PLAIN = Columns(event_time="at", label="y", time_features=False)
TEXT = Columns(event_time="at", label="y", text=("t",), time_features=False)


def fitted(columns: Columns = PLAIN, **values: Any) -> tuple[Encoder, pa.Table]:
    rows = len(next(iter(values.values())))
    table = pa.table({"at": np.zeros(rows, np.int64), "y": np.arange(rows) % 2, **values})
    schema = infer_schema(table.schema, columns)
    events = event_table(table, schema, "f", 0)
    return fit_encoder(events, schema), events


@pytest.mark.parametrize(
    ("type_", "form"),
    [
        (pa.list_(pa.uint8(), 6), ((6,), pa.uint8())),
        (NESTED, ((3, 4), pa.uint8())),
        (pa.fixed_shape_tensor(pa.int16(), (3, 4)), ((3, 4), pa.float32())),
        (pa.list_(pa.fixed_shape_tensor(pa.float64(), (3, 4)), 2), ((2, 3, 4), pa.float32())),
        (pa.list_(pa.float16(), 2), ((2,), pa.float32())),
        (pa.list_(pa.string(), 2), None),
        (pa.list_(pa.bool_(), 2), None),
        (pa.list_(pa.int64(), 0), None),
        (pa.list_(pa.int64()), None),
        (pa.int64(), None),
    ],
)
def test_the_form_follows_from_the_type(type_: pa.DataType, form: object) -> None:
    assert tensor_form(type_) == form


@pytest.mark.parametrize(
    "array",
    [
        pa.array(PIXELS.tolist(), NESTED),
        pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS),
        pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.int64()))),
        pa.array(PIXELS.tolist(), pa.large_list(pa.list_(pa.float64(), 4))),
        pa.array([None, *PIXELS.tolist()], NESTED).slice(1),
        pa.array([*PIXELS.tolist(), None], NESTED).take(pa.array([0, 1])),
    ],
)
def test_any_writing_of_the_same_numbers_is_the_same(array: pa.Array) -> None:
    found = tensors(pa.chunked_array([array]), (3, 4), pa.uint8())
    assert found.type == pa.list_(pa.uint8(), 12)
    assert found.to_pylist() == PIXELS.reshape(2, 12).tolist()


def test_what_is_null_or_not_finite() -> None:
    lists = [[1.5, None, 3.0], None, [float("nan"), float("inf"), -1e300]]
    found = tensors(pa.chunked_array([pa.array(lists, pa.list_(pa.float64()))]), (3,), pa.float32())
    assert found.to_pylist() == [[1.5, 0.0, 3.0], None, [0.0, 0.0, 0.0]]
    assert tensors(pa.chunked_array([pa.nulls(2)]), (3,), pa.float32()).to_pylist() == [None, None]
    assert tensors(pa.chunked_array([], NESTED), (3, 4), pa.uint8()).to_pylist() == []


def test_lists_of_one_length_have_a_shape_and_others_have_none() -> None:
    ragged = pa.array([[1, 2], [3]])
    assert with_lengths(ragged.type, ragged) == ragged.type
    nested = pa.array([[[1, 2]], None, [[3, 4]]])
    assert tensor_form(with_lengths(nested.type, nested)) == ((1, 2), pa.float32())


def test_uint8_is_scaled_to_one_and_other_numbers_are_not() -> None:
    values = [[0, 51, 255], None, [255, 0, 0]]
    encoder, events = fitted(
        small=pa.array(values, pa.list_(pa.uint8(), 3)), large=pa.array(values, pa.list_(pa.int64(), 3))
    )
    assert encoder.spec.tensors[0].shape == (3,)
    inputs = encoder(pa.concat_tables([events.slice(1), events])).inputs
    tenths = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0.2, 1], [0, 0, 0], [1, 0, 0]])
    torch.testing.assert_close(inputs["small"], tenths, rtol=0, atol=0)
    assert inputs["large"].tolist() == (tenths * 255).tolist()
    assert (inputs["numeric"].shape, inputs["categorical"].shape) == ((5, 0), (5, 0))
    assert encoder(events.drop_columns(["small"])).inputs["small"].tolist() == [[0, 0, 0]] * 3, "a column that is gone"
    assert encoder(events.slice(0, 0)).inputs["small"].shape == (0, 3)


def test_a_batch_may_be_changed_without_changing_the_table() -> None:
    encoder, events = fitted(x=pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2)))
    encoder(events).inputs["x"].zero_()
    assert events.column("x").to_pylist() == [[1.0, 2.0]] * 2


def test_an_encoder_survives_json_and_an_older_one_can_be_read() -> None:
    columns = Columns(event_time="at", label="y", text=("t",), max_tokens=5, text_buckets=10, time_features=False)
    encoder, _ = fitted(columns, x=pa.array(PIXELS.tolist(), NESTED), t=["a b", "c"], k=["u", "v"])
    stored = json.loads(canonical_json(encoder.to_json()))
    assert Encoder.from_json(stored) == encoder
    assert encoder.names == ("k", "x", "t")
    older = {name: value for name, value in stored.items() if name not in ("tensors", "texts")}
    older["categorical"] = [{"name": "k", "categories": ["u", "v"]}]
    assert Encoder.from_json(older).spec.cardinalities == (4,)


def test_an_older_schema_can_be_read() -> None:
    older = {"event_time": "at", "label": "y", "exclude": [], "categorical": ["k"]}
    found = Schema.from_json(older, [{"name": "x", "kind": "numeric"}, {"name": "k", "kind": "categorical"}])
    assert found.features == (Feature(name="x", kind="numeric"), Feature(name="k", kind="categorical"))
    tensor = Feature(name="i", kind="tensor", shape=(3, 4), element="uint8")
    assert Schema.from_json(older, [json.loads(canonical_json(vars(tensor)))]).features == (tensor,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": ("a",), "categorical": ("a",)}, "data.categorical and data.text both name a"),
        ({"text_buckets": 1}, "data.text_buckets must be 2 or more, not 1"),
        ({"max_tokens": 0}, "data.max_tokens must be 1 or more"),
        ({"max_categories": 0}, "data.max_categories must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Columns(event_time="at", label="y", **settings)


def test_names_that_would_clash_or_are_not_there() -> None:
    with pytest.raises(SchemaError, match="column numeric is a tensor, which cannot have this name: rename it"):
        fitted(numeric=pa.array(PIXELS.tolist(), NESTED))
    with pytest.raises(SchemaError, match=r"data.text\[0\]=wrds: no such column; did you mean 'words'"):
        fitted(Columns(event_time="at", label="y", text=("wrds",)), words=["a", "b"])


def test_a_column_of_sentences_is_worth_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    fitted(k=[f"this is sentence {i}" for i in range(100)])
    assert "k looks like text: data.text='[k]' with model=text reads it" in caplog.text


def test_a_request_is_encoded_like_the_event() -> None:
    images, other = pa.array([*PIXELS.tolist(), None], NESTED), pa.array([[0.5, 1.5], [2.5, 3.5], None])
    other = other.cast(pa.list_(pa.float64(), 2))
    values: dict[str, Any] = {"i": images, "v": other, "t": ["To be", None, "or not"]}
    encoder, events = fitted(TEXT, **values)
    rows = [
        {"i": i, "v": v, "t": t} for i, v, t in zip(images.to_pylist(), other.to_pylist(), values["t"], strict=True)
    ]
    for asked in (rows, [{**row, "i": row["i"] and np.ravel(row["i"]).tolist()} for row in rows]):
        found = encoder(request_table(asked, encoder)).inputs
        for name, tensor in encoder(events).inputs.items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        ("i", [1, 2], r"rows\[0\].features.i must be numbers of shape \[3, 4\], whole and from 0 to 255, not a list"),
        ("i", [[256] * 4] * 3, "whole and from 0 to 255"),
        ("i", [[0.5] * 4] * 3, "whole and from 0 to 255"),
        ("i", [[1, 2], [3]], "must be numbers of shape"),
        ("i", "abc", r"must be numbers of shape \[3, 4\], whole and from 0 to 255, not 'abc'"),
        ("v", [1.0, None], r"must be numbers of shape \[2\], not a list"),
        ("v", [1.0, float("inf")], r"must be numbers of shape \[2\]"),
        ("t", [1], "features.t must be a text, not a list"),
    ],
)
def test_a_request_that_does_not_fit_says_what_would(feature: str, value: object, message: str) -> None:
    v = pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2))
    encoder, _ = fitted(TEXT, i=pa.array(PIXELS.tolist(), NESTED), v=v, t=["a", "b"])
    with pytest.raises(DataError, match=message):
        request_table([{feature: value}], encoder)


def history(events: Callable[..., pa.Table], rows: int = 200, first: int = 0, **columns: Any) -> pa.Table:
    pixels = np.random.default_rng(first).integers(0, 256, (rows, 12), dtype=np.uint8)
    words = [f"row {i} of many" for i in range(first, first + rows)]
    return events(rows, first, image=pa.array(pixels.reshape(rows, 3, 4).tolist(), NESTED), words=words, **columns)


@pytest.mark.parametrize("small", [False, True])
def test_from_files_to_the_cache_and_to_tensors(
    write: Write, log_of: LogOf, events: Callable[..., pa.Table], tmp_path: Path, small: bool, monkeypatch: Any
) -> None:
    if small:
        monkeypatch.setattr(parquet_module, "BATCH_BYTES", 100)
        monkeypatch.setattr(snapshot_module, "CACHE_BYTES", 1000)
    plain = pa.array([[float(i), -1.0] for i in range(200)], pa.list_(pa.float64()))
    table = history(events, plain=plain, tags=pa.array([[1] * (i % 3) for i in range(200)]))
    write(table)
    log = log_of(text=["words"], time_features=False)
    kinds = {f.name: (f.kind, f.shape) for f in log.schema.features}
    assert kinds == {
        "x": ("numeric", ()),
        "kind": ("categorical", ()),
        "image": ("tensor", (3, 4)),
        "words": ("text", ()),
        "plain": ("tensor", (2,)),
    }
    assert log.schema.ignored == ("tags",)
    snapshots = Snapshots(log, Storage(tmp_path / "store"), SnapshotSettings())
    snapshot = snapshots.between("train", "all", datetime(2000, 1, 1, tzinfo=UTC), None)
    rows = snapshots.table(snapshot)
    assert rows.schema == log.schema.arrow
    assert rows.num_rows == 200
    encoder = fit_encoder(rows, log.schema)
    assert (outline(log.schema).tensors, outline(log.schema).texts) == (encoder.spec.tensors, encoder.spec.texts)
    inputs = encoder(rows).inputs
    assert list(inputs) == ["numeric", "categorical", "image", "plain", "words"]
    pixels = np.array(table.column("image").to_pylist(), np.float32) / np.float32(255)
    assert torch.equal(inputs["image"], torch.from_numpy(pixels))
    assert inputs["plain"][:3].tolist() == [[0, -1], [1, -1], [2, -1]]
    assert (inputs["words"] != 0).sum(dim=1).tolist() == [4] * 200
    snapshots.forget(snapshot)
    assert snapshots.table(snapshot).equals(rows), "decoded again from the files"


def test_a_file_whose_lists_have_another_length_is_set_aside_with_its_reason(
    write: Write, log_of: LogOf, events: Callable[..., pa.Table]
) -> None:
    write(events(4, plain=[[1.0, 2.0]] * 4), "1.parquet")
    write(events(4, 10, plain=[[1.0, 2.0, 3.0]] * 4), "2.parquet")
    write(events(4, 20, plain=pa.array([[1, 2]] * 4, pa.list_(pa.int8(), 2))), "3.parquet")
    write(events(4, 30), "4.parquet")
    log = log_of(time_features=False)
    assert list(log.files) == ["1.parquet", "3.parquet", "4.parquet"]
    assert "column plain was tensor and is now" in log.set_aside["2.parquet"]
    found = [
        row for part in log.between(log.first() or log.end(), log.end()) for row in part.column("plain").to_pylist()
    ]
    assert found == [[1.0, 2.0]] * 8 + [None] * 4


def test_wide_rows_are_read_few_at_a_time(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (1000, 64), dtype=np.uint8)
    folder = write(pa.table({"x": pa.FixedSizeListArray.from_arrays(values.ravel(), 64)}))
    source = parquet_module.ParquetSource(path=str(folder), event_time="at", label="y")
    monkeypatch.setattr(parquet_module, "BATCH_BYTES", 6_400)
    sizes = [batch.num_rows for _, batch in source.read("a.parquet")]
    assert sum(sizes) == 1000
    assert 20 < max(sizes) <= 200
    assert pq.read_table(folder).equals(pa.Table.from_batches([b for _, b in source.read("a.parquet")]))
