"""pyarrow, pandas and DuckDB read clip-embed's Parquet."""

from __future__ import annotations

import pathlib

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_embed_runs import PHOTOS, rows, run


@pytest.mark.parametrize("key_type", ["text", "bigint"])
def test_readers_agree(tmp_path: pathlib.Path, key_type: str) -> None:
    listing, output = tmp_path / "list.csv", tmp_path / "v.parquet"
    names = sorted(PHOTOS.glob("*.jpg"))
    listing.write_text("path,id\n" + "".join(f"{name},{number - 3}\n" for number, name in enumerate(names)))
    options = ["--key-column", "id", "--key-type", key_type]
    run(listing, "-o", tmp_path / "v.csv", *options)
    expected = rows(tmp_path / "v.csv")
    run(listing, "-o", output, "-f", "parquet", *options)
    table = pq.read_table(output)
    assert table.schema.field("key").type == (pa.string() if key_type == "text" else pa.int64())
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False))
    assert not any(field.nullable for field in table.schema)
    assert b'"model":"photo-mini"' in pq.read_metadata(output).metadata[b"clip_embed"]
    readers = {
        "pyarrow": zip(table["key"].to_pylist(), table["embedding"].to_pylist(), strict=True),
        "pandas": pd.read_parquet(output).itertuples(index=False, name=None),
        "duckdb": duckdb.sql(f"SELECT key, embedding::FLOAT[512] FROM '{output}'").fetchall(),
    }
    for reader, found in readers.items():
        vectors = {str(key): np.asarray(vector, np.float32) for key, vector in found}
        assert vectors.keys() == expected.keys(), reader
        assert all(np.array_equal(vectors[key], expected[key]) for key in expected), reader
    # Vectors are contiguous, and clip-embed reads a file that another program wrote from it as a list.
    assert np.stack(pd.read_parquet(output)["embedding"]).shape == (len(names), 512)
    (kind,) = duckdb.sql(f"SELECT typeof(key), typeof(embedding) FROM '{output}' LIMIT 1").fetchall()
    assert kind == ("VARCHAR" if key_type == "text" else "BIGINT", "FLOAT[]")
