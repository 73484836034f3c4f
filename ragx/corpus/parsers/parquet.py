"""Parquet -> a document a row, by pyarrow, in batches."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
from pyarrow import parquet

from ragx.corpus.parsers.serve import serve
from ragx.corpus.streams import Limits, Problem
from ragx.corpus.tables import Record

ROWS = 256
"""Rows of a batch."""


def parse(path: Path, name: str, fields: list[str], limits: Limits) -> Iterator[Record | Problem]:
    """The configured columns of every row."""
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            there = file.schema_arrow.names
            row = 0
            for batch in file.iter_batches(ROWS, columns=[f for f in fields if f in there], use_threads=False):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}:row {row}", {name: _plain(value) for name, value in record.items()}
            if not set(fields) & set(there):
                yield Problem(str(path), f"no column {fields[0]!r}; columns here: {', '.join(there)}")
    except pyarrow.ArrowMemoryError:
        raise MemoryError from None
    except (pyarrow.ArrowException, OSError) as error:
        yield Problem(str(path), f"no parquet file that can be read ({str(error).splitlines()[0]})")


def _plain(value: object) -> object:
    """Numbers and text as they are; anything else has no place in a document."""
    return value if isinstance(value, str | int | float | None) else [type(value).__name__]


if __name__ == "__main__":
    serve(parse)
