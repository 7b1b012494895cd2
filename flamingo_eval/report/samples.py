"""Samples as data: JSON lines, CSV, Parquet; a row per query, written as the rows arrive."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO

from flamingo_eval.core.text import neutralised, printable

Row = Mapping[str, Any]
COLUMNS = ("benchmark", "shots", "seed", "query_id", "demonstration_ids", "images", "prompt", "raw", "class_logprobs",
           "answer", "references", "score", "demo")  # fmt: skip
"""Columns of CSV and Parquet. Ids are text there, since some benchmarks' are numbers and some are not."""

_ROWS_AT_ONCE = 10_000


def write_jsonl(rows: Iterable[Row], file: BinaryIO) -> None:
    """One JSON object per line, ids as the data has them."""
    for row in rows:
        file.write((printable(json.dumps(row, ensure_ascii=False)) + "\n").encode("utf-8", "backslashreplace"))


def write_csv(rows: Iterable[Row], file: BinaryIO, *, escape_formulas: bool = False) -> None:
    """A header and a line per query; lists, references, log-likelihoods and conversations are JSON texts.

    Args:
        rows: as :func:`flamingo_eval.engine.samples.samples` returns them.
        file: where to write.
        escape_formulas: put an apostrophe before texts that a spreadsheet would take for formulas.
    """

    class _Text:
        def write(self, text: str) -> None:
            file.write(text.encode("utf-8", "backslashreplace"))

    writer = csv.writer(_Text(), lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        flat = _flat(row)
        cells = (json.dumps(flat[c], ensure_ascii=False) if isinstance(flat[c], list) else flat[c] for c in COLUMNS)
        writer.writerow(neutralised(cell) if escape_formulas and isinstance(cell, str) else cell for cell in cells)


def write_parquet(rows: Iterable[Row], file: BinaryIO) -> None:
    """Typed columns: demonstration ids and images are lists of texts; references and log-likelihoods are JSON."""
    import pyarrow
    from pyarrow import parquet

    text, texts, integer = pyarrow.string(), pyarrow.list_(pyarrow.string()), pyarrow.int64()
    kinds = {"shots": integer, "seed": integer, "demonstration_ids": texts, "images": texts, "score": pyarrow.float64(),
             "demo": pyarrow.bool_()}  # fmt: skip
    schema = pyarrow.schema([(column, kinds.get(column, text)) for column in COLUMNS])
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        left = iter(rows)
        while some := [_flat(row) for row in islice(left, _ROWS_AT_ONCE)]:
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))


def _flat(row: Row) -> dict[str, Any]:
    logprobs: Mapping[str, float] | None = row.get("class_logprobs")
    ids: Sequence[Any] = row["demonstration_ids"]
    return {
        **{column: row.get(column) for column in COLUMNS},
        "query_id": str(row["query_id"]),
        "demonstration_ids": [str(id) for id in ids],
        "prompt": row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"], ensure_ascii=False),
        "class_logprobs": None if logprobs is None else json.dumps(logprobs, ensure_ascii=False),
        "references": None if row["references"] is None else json.dumps(row["references"], ensure_ascii=False),
    }


FORMATS: dict[str, Callable[[Iterable[Row], BinaryIO], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}
