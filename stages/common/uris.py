"""Where data and models come from: a URI becomes local files.

| scheme | form | pinned by |
|---|---|---|
| `package` | `package://<distribution>@<version>/<path or pattern inside site-packages>` | the version |
| `hf`, data | `hf://datasets/<owner>/<name>@<40 hex>/<path>` | the commit |
| `hf`, model | `hf://<owner>/<name>@<40 hex>` | the commit |
| `file` | `file:<path>` | the bytes |
| `https`, `s3`, ... | any URL that fsspec opens | its sha256, which must be given |
"""

import fnmatch
import importlib.metadata
import re
from pathlib import Path

from stages.common.errors import PipelineError

PINNED = (
    "package:",
    "hf:",
    "file:",
)  # schemes that need no sha256: version, commit, or tracked as a dependency
HF = re.compile(r"hf://(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[^/]+)(?:/(?P<path>.+))?")
PACKAGE = re.compile(r"package://(?P<name>[\w.-]+)@(?P<version>[^/]+)/(?P<glob>.+)")


def files(uri: str) -> dict[str, bytes]:
    """Read every file that a URI names: name in upstream's terms to content, sorted by name.

    Raises PipelineError naming the URI when it is malformed, not pinned, or matches nothing.
    """
    if uri.startswith("package:"):
        paths = package_files(uri)
        return {name: path.read_bytes() for name, path in paths.items()}
    if uri.startswith("hf:"):
        path = hub_file(uri)
        return {path.name: path.read_bytes()}
    if uri.startswith("file:"):
        path = Path(uri.removeprefix("file:"))
        if not path.is_file():
            raise PipelineError(f"{uri}: not found; expected a file")
        return {path.name: path.read_bytes()}
    return {uri.rsplit("/", 1)[-1]: _download(uri)}


def package_files(uri: str) -> dict[str, Path]:
    """The files of an installed distribution that match, by their path inside site-packages.

    `*` also crosses folders. Raises PipelineError when the distribution is missing or of another version.
    """
    match = PACKAGE.fullmatch(uri)
    if match is None:
        raise PipelineError(f"{uri}: expected package://<distribution>@<version>/<path>")
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


def hub_file(uri: str) -> Path:
    """Download one file of a Hub data set into the Hub's own cache and return its path."""
    match = _pinned(uri)
    if match["path"] is None:
        raise PipelineError(f"{uri}: no path; expected hf://datasets/<owner>/<name>@<revision>/<path>")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(
                match["repo"],
                match["path"],
                repo_type="dataset" if match["kind"] else "model",
                revision=match["revision"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PipelineError(f"{uri}: {_first_line(error)}; expected a file that the Hub can serve") from None


def hub_model(uri: str) -> Path:
    """Download a model repository (safetensors, configuration, tokenizer) and return its folder."""
    match = _pinned(uri)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                match["repo"],
                revision=match["revision"],
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PipelineError(f"{uri}: {_first_line(error)}; expected a model that the Hub can serve") from None


def _pinned(uri: str) -> re.Match[str]:
    match = HF.fullmatch(uri)
    if match is None:
        raise PipelineError(f"{uri}: expected hf://[datasets/]<owner>/<name>@<revision>[/<path>]")
    if not re.fullmatch(r"[0-9a-f]{40}", match["revision"]):
        raise PipelineError(
            f"{uri}: revision {match['revision']!r}; expected a commit hash of 40 hex digits, "
            "since a branch or tag can move"
        )
    return match


def _download(url: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as stream:
            return bytes(stream.read())
    except (OSError, ValueError, ImportError) as error:
        raise PipelineError(f"{url}: {_first_line(error)}; expected a URL that can be read") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
