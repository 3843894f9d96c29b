"""Where data and models come from: a URI becomes files on this machine, and the revision they are of.

| scheme | form | pinned by |
|---|---|---|
| `package` | `package://<distribution>@<version>/<path or pattern inside site-packages>` | the version |
| `hf`, data | `hf://datasets/<owner>/<name>@<40 hex>/<path>` | the commit |
| `hf`, model | `hf://<owner>/<name>@<40 hex>` | the commit |
| `file` | `file:<path>` | the bytes |
| `https`, `s3`, ... | any URL that fsspec opens | its sha256, which must be given |

The Hub is asked through huggingface_hub, which reads HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE itself
and keeps what it brought. Errors are told in words of our own: upstream's may repeat addresses and headers.
"""

import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from stages.common.errors import PipelineError

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

PINNED = (
    "package:",
    "hf:",
    "file:",
)  # schemes that need no sha256: version, commit, or tracked as a dependency
HF = re.compile(
    r"hf://(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[^/]+)(?:/(?P<path>.+))?", re.ASCII
)
PACKAGE = re.compile(r"package://(?P<name>[\w.-]+)@(?P<version>[^/]+)/(?P<glob>.+)")
COMMIT = re.compile(r"[0-9a-f]{40}")

BUSY = (408, 429, 500, 502, 503, 504)  # statuses that pass: those that huggingface_hub's own backoff names
ATTEMPTS = 5  # at one answer, with 1, 2, 4 and 8 seconds between them where the Hub asks for no other wait
LONGEST = 300  # seconds that the Hub may ask us to wait: its rate limits count in windows of 300
SILENCE = 30  # seconds without a byte after which a request has failed
UPSTREAM = (OSError, ValueError, KeyError, TypeError, RuntimeError)  # what huggingface_hub and hf_xet raise
SECOND = 1.0  # how long a second of waiting lasts; tests make it shorter


@dataclass(frozen=True)
class Found:
    """The files that a URI names, on this machine."""

    revision: str  # a commit of the Hub, a package's version, or "sha256:" and 16 hex digits
    committed: str | None  # when the commit was made, ISO 8601 in UTC; only the Hub tells
    paths: dict[str, Path]  # by their name in upstream's terms, sorted


def find(uri: str, scratch: Path, allow_moving: bool = False) -> Found:
    """Bring the files that a URI names to this machine; downloads that no cache keeps go into `scratch`.

    A Hub revision must be a commit unless `allow_moving`. Raises PipelineError naming the URI when it is
    malformed, not pinned, cannot be had, or matches nothing.
    """
    if uri.startswith("package:"):
        return Found(_package(uri)["version"], None, package_files(uri))
    if uri.startswith("hf:"):
        return _hub_file(uri, allow_moving)
    if uri.startswith("file:"):
        path = Path(uri.removeprefix("file:"))
        if not path.is_file():
            raise PipelineError(f"{uri}: not found; expected a file")
        name = path.name
    else:
        path = _download(uri, scratch)
        name = uri.partition("?")[0].rsplit("/", 1)[-1]
    try:
        return Found(f"sha256:{sha256(path)[:16]}", None, {name: path})
    except OSError as error:
        raise PipelineError(f"{uri}: {error.strerror}; expected a file that can be read") from None


def sha256(path: Path) -> str:
    """The digest of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(url: str, scratch: Path) -> Path:
    import aiohttp
    import fsspec

    with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as target:
        try:
            with fsspec.open(url, "rb") as stream:
                shutil.copyfileobj(stream, target)
        except (OSError, ValueError, ImportError, aiohttp.ClientError) as error:
            raise PipelineError(f"{url}: {_first_line(error)}; expected a URL that can be read") from None
    return Path(target.name)


# Packages. ---------------------------------------------------------------------------------------------


def package_files(uri: str) -> dict[str, Path]:
    """The files of an installed distribution that match, by their path inside site-packages.

    `*` also crosses folders. Raises PipelineError when the distribution is missing or of another version.
    """
    import importlib.metadata

    match = _package(uri)
    try:
        distribution = importlib.metadata.distribution(match["name"])
    except importlib.metadata.PackageNotFoundError:
        raise PipelineError(
            f"{uri}: package {match['name']!r} is not installed; expected version {match['version']} "
            "(`make setup` installs it)"
        ) from None
    if distribution.version != match["version"]:
        raise PipelineError(
            f"{uri}: version {distribution.version} is installed; expected {match['version']}"
        )
    found = {
        str(entry): Path(str(entry.locate()))
        for entry in distribution.files or []
        if fnmatch.fnmatchcase(str(entry), match["glob"])
    }
    if not found:
        raise PipelineError(f"{uri}: no file of {match['name']} {match['version']} matches {match['glob']!r}")
    return dict(sorted(found.items()))


def _package(uri: str) -> re.Match[str]:
    match = PACKAGE.fullmatch(uri)
    if match is None:
        raise PipelineError(f"{uri}: expected package://<distribution>@<version>/<path>")
    return match


# The Hub. ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A place on the Hub."""

    uri: str
    kind: str  # "dataset" or "model"
    repo: str  # "<owner>/<name>"
    revision: str  # a commit, a branch or a tag
    path: str  # of one file, "" for the whole repository


def place(uri: str) -> Place:
    """Take a `hf://` URI apart; a slash in a branch's name is written %2F."""
    match = HF.fullmatch(uri)
    if match is None:
        raise PipelineError(f"{uri}: expected hf://[datasets/]<owner>/<name>@<revision>[/<path>]")
    kind = "dataset" if match["kind"] else "model"
    return Place(uri, kind, match["repo"], unquote(match["revision"]), match["path"] or "")


def commit(where: Place) -> str:
    """The commit that a revision stands for: itself, or what the Hub says of a branch or tag today."""
    if COMMIT.fullmatch(where.revision):
        return where.revision
    prepare()
    from huggingface_hub import HfApi

    info = ask(
        where.uri, lambda: HfApi().repo_info(where.repo, repo_type=where.kind, revision=where.revision)
    )
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise PipelineError(f"{where.uri}: the Hub names commit {info.sha!r}; expected 40 hex digits")
    return info.sha


def hub_model(uri: str) -> Path:
    """Download a model repository (safetensors, configuration, tokenizer) and return its folder."""
    where = place(uri)
    _require_commit(where)
    prepare()
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
    return Path(
        ask(uri, lambda: snapshot_download(where.repo, revision=where.revision, allow_patterns=patterns))
    )


def hub_path(where: Place, revision: str) -> Path:
    """Download one file at a commit, unless the Hub's cache has it, and return its path in the cache."""
    prepare()
    from huggingface_hub import hf_hub_download

    return Path(
        ask(
            where.uri,
            lambda: hf_hub_download(where.repo, where.path, repo_type=where.kind, revision=revision),
        )
    )


def in_cache(path: Path) -> str:
    """Where the bytes of a file lie in the Hub's cache, relative to the cache's folder."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return os.path.relpath(path.resolve(), Path(HF_HUB_CACHE).expanduser().resolve())


def _hub_file(uri: str, allow_moving: bool) -> Found:
    where = place(uri)
    if not where.path:
        raise PipelineError(f"{uri}: no path; expected hf://datasets/<owner>/<name>@<revision>/<path>")
    if not allow_moving:
        _require_commit(where)
    revision = commit(where)
    path = hub_path(where, revision)
    return Found(revision, _committed(where, revision), {where.path: path})


def _require_commit(where: Place) -> None:
    if not COMMIT.fullmatch(where.revision):
        raise PipelineError(
            f"{where.uri}: revision {where.revision!r}; expected a commit hash of 40 hex digits, since a "
            "branch or tag can move (`make pin` puts the hash there)"
        )


def _committed(where: Place, revision: str) -> str | None:
    """When a commit was made; None where it cannot be asked: offline, or at a mirror without history."""
    from datetime import UTC

    from huggingface_hub import GitCommitInfo, HfApi, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    def history() -> list[GitCommitInfo]:
        try:
            return HfApi().list_repo_commits(where.repo, repo_type=where.kind, revision=revision)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            return []

    if is_offline_mode():
        return None
    times = [made.created_at for made in ask(where.uri, history) if made.commit_id == revision]
    return times[0].astimezone(UTC).isoformat() if times else None


class Busy(Exception):
    """The Hub answered with a status of BUSY."""

    def __init__(self, status: int, wait: float | None) -> None:
        super().__init__(status)
        self.status = status
        self.wait = wait  # seconds that it asks for


def ask(uri: str, call: Callable[[], T]) -> T:
    """What `call` gets from the Hub; a busy Hub and a broken connection are tried again, within bounds.

    Raises PipelineError naming the URI, in one line without a token or an address.
    """
    import httpx2

    prepare()
    attempt = 1
    while True:
        try:
            return call()
        except (Busy, *UPSTREAM, httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = _reason(error)
            wait = _wait(error, attempt)
        if wait is None:
            raise PipelineError(f"{uri}: {reason}")
        print(f"{uri}: {reason}; trying again in {wait:g} s", file=sys.stderr)
        time.sleep(wait * SECOND)
        attempt += 1


@cache
def prepare() -> None:
    """Import huggingface_hub and make its client raise Busy, so that `ask` does and bounds all waiting.

    To be called before anything is taken from that package. Its own loops would sleep for as long as the
    server's Retry-After says, give up on a 503 in the middle of a download, and wait for ever on a silent
    API; its log repeats signed addresses.
    """
    import httpx2

    try:
        from huggingface_hub import get_session, set_client_factory
    except ValueError as error:  # it takes the address apart when it is imported
        raise PipelineError(f"HF_ENDPOINT: {error}; expected the address of a Hub") from None

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    hooks = get_session().event_hooks["request"]

    def client() -> httpx2.Client:
        return httpx2.Client(
            event_hooks={"request": [*hooks, _limit], "response": [_check]}, follow_redirects=True
        )

    set_client_factory(client)


def _limit(request: "httpx2.Request") -> None:
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        part: limits.get(part) or SILENCE for part in ("connect", "read", "write", "pool")
    }


def _check(response: "httpx2.Response") -> None:
    if response.status_code in BUSY:
        raise Busy(response.status_code, _asked_wait(dict(response.headers)))


def _asked_wait(headers: dict[str, str]) -> float | None:
    """Seconds that a busy server asks for, by Retry-After (seconds or a date) or the Hub's `ratelimit`."""
    after = headers.get("retry-after", "").strip()
    if after.isascii() and after.isdigit():
        return float(after)
    if after:
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    spent = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return float(spent[1]) if spent else None


def _wait(error: Exception, attempt: int) -> float | None:
    """Seconds until the next attempt, or None for no further one."""
    import httpx2

    if isinstance(error, Busy):
        wait = 2.0 ** (attempt - 1) if error.wait is None else error.wait
    elif isinstance(error, httpx2.ReadError | httpx2.WriteError):  # other breaks huggingface_hub mends itself
        wait = 2.0 ** (attempt - 1)
    else:
        return None
    return wait if attempt < ATTEMPTS and wait <= LONGEST else None


def _reason(error: BaseException) -> str:
    """What came instead, and what was expected."""
    import httpx2
    from huggingface_hub.errors import (
        FileMetadataError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, Busy) and error.wait is not None and error.wait > LONGEST:
        return (
            f"{error.status} from the Hub, which asks to wait {error.wait:g} s; expected {LONGEST} s at most"
        )
    if isinstance(error, Busy):
        return f"{error.status} from the Hub; expected an answer within {ATTEMPTS} attempts"
    if isinstance(error, HfHubHTTPError):
        return _status_reason(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "not in the Hub's cache; expected it there while HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _reason(error.__cause__)
    if isinstance(
        error,
        httpx2.ConnectError
        | httpx2.TimeoutException
        | httpx2.RemoteProtocolError
        | httpx2.UnsupportedProtocol,
    ):
        return f"no answer: {_first_line(error)}; expected the Hub (see HF_ENDPOINT)"
    if isinstance(error, httpx2.ReadError | httpx2.WriteError):
        return f"the connection broke: {_first_line(error)}; expected the whole answer"
    if isinstance(error, FileMetadataError | KeyError | TypeError | json.JSONDecodeError):
        return "the answer lacks what the Hub says of a file; expected a Hub (see HF_ENDPOINT)"
    if isinstance(error, UnicodeError | httpx2.LocalProtocolError):
        return "a request that HTTP does not allow; expected an HF_TOKEN of letters, digits and '_'"
    size = re.search(r"of size (\d+) but has size (\d+)", str(error))
    if size:
        return f"{size[2]} bytes came; expected {size[1]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; expected a download into the Hub's cache (see HF_HOME)"
    if isinstance(error, ValueError):
        return "a name that the Hub does not allow; expected its owner, name and path"
    return f"{type(error).__name__}; expected a download from the Hub"


def _status_reason(error: "HfHubHTTPError") -> str:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"{status} from the Hub: gated; expected that its terms are accepted and HF_TOKEN is set"
    if isinstance(error, RevisionNotFoundError):
        return "no such revision; expected a commit, branch or tag of the repository"
    if isinstance(error, EntryNotFoundError):
        return "no such file; expected a path in the repository at this revision"
    if status == 401:
        return (
            "401 from the Hub: no such repository, or not a public one; expected its owner and name, or "
            "HF_TOKEN set to a token that may read it"
        )
    if status == 403:
        return (
            "403 from the Hub; expected access: accept the repository's terms on its page and set HF_TOKEN "
            "to a token that may read it"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository; expected the owner and name of one"
    return f"{status} from the Hub; expected 200"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
