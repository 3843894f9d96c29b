"""Bring one source into the project: its rows verbatim, in upstream order, beside their provenance.

In: the URIs of `fetch.<source>`. Out: data/raw/<source>.jsonl and data/raw/<source>.provenance.json.
The only data stage that may use the network. Bytes are checked against a sha256 where one is given.

    python -m stages.fetch coding
"""

import argparse
import ast
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.common import files, uris
from stages.common.errors import PipelineError, run
from stages.common.params import load, params

RAW = Path("data/raw")

Schema = Literal["functions", "alpaca", "preferences", "fixes", "humaneval"]


@params
class Origin:
    """One URI of a source."""

    uri: str
    licence: str  # SPDX identifier of the rows it brings
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = (
        None  # of the one file that the URI names
    )


@params
class FetchParams:
    """Where a source comes from."""

    schema: Schema  # what its rows look like; `filter` parses by it
    origins: Annotated[list[Origin], Field(min_length=1)]


def functions(text: str, name: str) -> list[files.Row]:
    """The public, documented top-level functions of a Python module, in the order of the file."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise PipelineError(f"{name}:{line}: not Python: {error}; expected a module") from None
    lines = text.split("\n")
    return [
        {"path": name, "name": node.name, "code": "\n".join(lines[first_line(node) - 1 : node.end_lineno])}
        for node in module.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node)
    ]


def first_line(node: ast.FunctionDef) -> int:
    """Where a function begins, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def json_list(text: str, name: str) -> list[files.Row]:
    """The rows of a JSON list of objects, or of JSON lines, which upstream files also call `.json`."""
    if not text.lstrip().startswith("["):
        return files.parse_rows(text, name)
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PipelineError(f"{name}: {error}; expected a JSON list of objects") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PipelineError(f"{name}: expected a JSON list of objects")
    return rows


def table(data: bytes, name: str, suffix: str) -> list[files.Row]:
    """The rows of a CSV or parquet file."""
    import pandas

    try:
        if suffix == ".parquet":
            frame = pandas.read_parquet(io.BytesIO(data))
        else:  # text as it stands: no guessed numbers, no "N/A" taken for nothing
            frame = pandas.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise PipelineError(f"{name}: {str(error).splitlines()[0]}; expected {suffix[1:]}") from None
    return files.parse_rows(frame.to_json(orient="records", lines=True), name)


TEXT_DECODERS: dict[str, Callable[[str, str], list[files.Row]]] = {
    ".json": json_list,
    ".jsonl": files.parse_rows,
    ".py": functions,
}


def decode(name: str, data: bytes) -> list[files.Row]:
    """Rows of one file, decoded by its suffix, `.gz` taken off first."""
    path = Path(name)
    if path.suffix == ".gz":
        try:
            return decode(path.stem, gzip.decompress(data))
        except (OSError, EOFError, zlib.error) as error:
            raise PipelineError(f"{name}: {error}; expected gzip") from None
    if path.suffix in (".csv", ".parquet"):
        return table(data, name, path.suffix)
    if path.suffix not in TEXT_DECODERS:
        known = ", ".join([*TEXT_DECODERS, ".csv", ".parquet"])
        raise PipelineError(f"{name}: suffix {path.suffix!r}; expected one of {known}, optionally with .gz")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PipelineError(f"{name}: byte {error.start} is not UTF-8; expected UTF-8 text") from None
    return TEXT_DECODERS[path.suffix](text, name)


def fetch(origin: Origin) -> tuple[list[files.Row], files.Row]:
    """Rows of one origin and what is known of them: URI, licence, files with sha256 and bytes, row count."""
    if origin.sha256 is None and not origin.uri.startswith(uris.PINNED):
        raise PipelineError(
            f"{origin.uri}: sha256: nothing; expected one, since what a URL serves can change"
        )
    contents = uris.files(origin.uri)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    if origin.sha256 is not None and [*digests.values()] != [origin.sha256]:
        raise PipelineError(f"{origin.uri}: sha256 {', '.join(digests.values())}; expected {origin.sha256}")
    rows = [row for name, data in contents.items() for row in decode(name, data)]
    provenance = {
        "uri": origin.uri,
        "licence": origin.licence,
        "rows": len(rows),
        "files": [
            {"name": name, "bytes": len(data), "sha256": digests[name]} for name, data in contents.items()
        ],
    }
    return rows, provenance


def main() -> None:
    """Fetch the source named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a key of `fetch` in params.yaml")
    source = parser.parse_args().source
    chosen = load(f"fetch.{source}", FetchParams)

    fetched = [fetch(origin) for origin in chosen.origins]
    rows = [row for part, _ in fetched for row in part]
    if not rows:
        raise PipelineError(
            f"fetch.{source}: 0 rows in {', '.join(o.uri for o in chosen.origins)}; expected some"
        )
    files.write_rows(RAW / f"{source}.jsonl", rows)
    files.write_json(
        RAW / f"{source}.provenance.json",
        {"schema": chosen.schema, "rows": len(rows), "origins": [provenance for _, provenance in fetched]},
    )
    print(f"fetch {source}: {len(rows)} rows from {len(fetched)} origins")


if __name__ == "__main__":
    run(main)
