"""Bring one source into the project: its rows verbatim, in upstream order, beside their provenance.

In: the URIs of `fetch.<source>`. Out: data/raw/<source>.jsonl and data/raw/<source>.provenance.json.
The only data stage that may use the network. Bytes are checked against a sha256 and a row count where given.

    python -m stages.fetch coding
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.common import files, formats, uris
from stages.common.errors import PipelineError, run
from stages.common.params import load, params
from stages.common.schemas import SCHEMAS, Schema

RAW = Path("data/raw")


@params
class Origin:
    """One URI of a source."""

    uri: str
    licence: str  # SPDX identifier of the rows it brings
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of the one file that it names
    rows: Annotated[int, Field(ge=1)] | None = None  # how many it is known to bring
    allow_moving: bool = False  # take a branch, a tag or a URL without sha256, whose content can change
    note: str = ""  # what its provenance should also say, such as a doubt about the licence


@params
class FetchParams:
    """Where a source comes from."""

    schema: Schema  # what its rows look like; `filter` parses by it
    origins: Annotated[list[Origin], Field(min_length=1)]


def check_bytes(origin: Origin, found: uris.Found) -> list[files.Row]:
    """Name, size and sha256 of every file; raises PipelineError when the sha256 is not as declared."""
    entries = [
        {"name": name, "bytes": path.stat().st_size, "sha256": uris.sha256(path)}
        for name, path in found.paths.items()
    ]
    digests = [entry["sha256"] for entry in entries]
    if origin.sha256 is not None and digests != [origin.sha256]:
        message = f"{origin.uri}: sha256 {', '.join(map(str, digests))}; expected {origin.sha256}"
        if origin.uri.startswith("hf:"):
            cached = uris.in_cache(*found.paths.values())
            message += f" (if it was damaged on the way, remove {cached} from the Hub's cache)"
        raise PipelineError(message)
    return entries


def read(origin: Origin, found: uris.Found, schema: Schema, entry: files.Row) -> Iterator[files.Row]:
    """The rows of one origin, one at a time; their number goes into `entry` after the last one.

    Raises PipelineError when they are not as many as declared, or lack a key of the schema altogether.
    """
    count = 0
    keys: dict[str, None] = {}
    for name, path in found.paths.items():
        with path.open("rb") as stream:
            for row in formats.decode(stream, name):
                count += 1
                keys.update(dict.fromkeys(row))
                yield row
    if origin.rows is not None and count != origin.rows:
        raise PipelineError(f"{origin.uri}: {count} rows; expected the {origin.rows} that are declared")
    if count == 0:
        raise PipelineError(f"{origin.uri}: 0 rows; expected some")
    missing = [key for key in SCHEMAS[schema] if key not in keys]
    if missing:
        raise PipelineError(
            f"{origin.uri}: no row has {missing}, only {str(list(keys))[:200]}; expected the keys of "
            f"the schema {schema!r}"
        )
    entry["rows"] = count


def bring(origin: Origin, scratch: Path) -> tuple[uris.Found, files.Row]:
    """The files of one origin and its provenance, in which only the number of rows is still open."""
    pinned = origin.sha256 is not None or origin.uri.startswith(uris.PINNED)
    if not pinned and not origin.allow_moving:
        raise PipelineError(
            f"{origin.uri}: sha256: nothing; expected one, since what a URL serves can change"
        )
    found = uris.find(origin.uri, scratch, origin.allow_moving)
    entry = {
        "uri": origin.uri,
        "revision": found.revision,
        "licence": origin.licence,
        "note": origin.note,
        "rows": 0,
        "committed": found.committed,
        "files": check_bytes(origin, found),
    }
    return found, entry


def main() -> None:
    """Fetch the source named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a key of `fetch` in params.yaml")
    source = parser.parse_args().source
    chosen = load(f"fetch.{source}", FetchParams)

    with tempfile.TemporaryDirectory() as scratch:
        brought = [(origin, *bring(origin, Path(scratch))) for origin in chosen.origins]
        rows = files.write_rows(
            RAW / f"{source}.jsonl",
            chain.from_iterable(
                read(origin, found, chosen.schema, entry) for origin, found, entry in brought
            ),
        )
    files.write_json(
        RAW / f"{source}.provenance.json",
        {"schema": chosen.schema, "rows": rows, "origins": [entry for _, _, entry in brought]},
    )
    print(f"fetch {source}: {rows} rows from {len(brought)} origins")


if __name__ == "__main__":
    run(main)
