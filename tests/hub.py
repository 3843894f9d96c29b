"""A Hub on this machine: enough of the Hub's HTTP for huggingface_hub 2.4.0, with faults on request.

    with Hub({"datasets/owner/name": {"main": {"rows.json": b"[]"}}}) as hub:
        hub.faults.append(Fault("rows.json", status=503, times=2))
        done = hub.run(home, [job(project, "stages.fetch", "mine")])  # in one process of their own, since
        assert done[0]["status"] == 0                                 # HF_ENDPOINT is read at import

Repositories are named as in URIs: `datasets/<owner>/<name>`, or `<owner>/<name>` for a model. Large files lie
on a second address, as on the real Hub, to which no token may be sent. With `writers` it takes uploads, too:

    with Hub({}, writers={"hf_writer": "owner"}) as hub: ...  # that token may write to what is the owner's
    assert hub.history == [("owner/name", ["README.md"])]     # a commit each, with the paths it changed
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
DATE = "2024-05-06T07:08:09.000Z"  # of every commit
LARGE = (".bin", ".gguf", ".parquet", ".safetensors")  # stored as LFS objects
TREE = dict[str, dict[str, dict[str, bytes]]]  # repository, revision, path


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path holds `path`."""

    path: str
    method: str = "GET"
    status: int | None = None  # answer this instead, with `headers` and `body`
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None  # close the connection after so many bytes of the body
    reset: bool = False  # close it with a reset
    short: int = 0  # announce and send so many bytes less, as a proxy might
    delay: float = 0.0  # seconds of silence before the answer
    times: int = 1


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""


class Hub:
    """The server; a context manager. `log` holds every request: method, path with query, headers."""

    def __init__(
        self, repos: TREE, private: dict[str, str] | None = None, writers: dict[str, str] | None = None
    ) -> None:
        self.repos = repos
        self.private = private or {}  # repository to the token that may read it
        self.writers = writers or {}  # token to the owner of the repositories that it may write to
        self.objects: dict[str, bytes] = {}  # large files that were uploaded, by their digest
        self.made: list[dict[str, Any]] = []  # repositories that were made, as they were asked for
        self.history: list[tuple[str, list[str]]] = []  # commits that were sent: repository, changed paths
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.commits: dict[tuple[str, str], str] = {}
        self.lock = threading.Lock()
        self.servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), handler(self, large)) for large in (False, True)
        ]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> "Hub":
        for server in self.servers:
            server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that went away
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def commit(self, repo: str, revision: str) -> str:
        """The commit of a revision, which may be a commit itself; worked out once."""
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        if (repo, revision) not in self.commits:
            files = sorted(self.repos[repo][revision].items())
            text = "\n".join([repo, revision, *(f"{path} {sha256(data)}" for path, data in files)])
            self.commits[repo, revision] = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return self.commits[repo, revision]

    def fault(self, method: str, path: str) -> Fault | None:
        """The first fault that is due for a request."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """What a client needs in order to see this Hub and no other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            **changes,
        }

    def run(self, home: Path, jobs: list[dict[str, Any]], **changes: str) -> list[dict[str, Any]]:
        """Do the jobs one after the other in one process, with HF_HOME at `home`; status, out, err, waits."""
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps(jobs),
            env=self.environment(home, **changes),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)


# The client's side. A second that we wait for the Hub lasts a thousandth, and huggingface_hub's own sleep at
# most a hundredth.
DRIVER = """
import contextlib, importlib, io, json, os, sys, time
from stages.common import uris
from stages.common.errors import run

uris.SECOND = 0.001
sleep, waits = time.sleep, []
time.sleep = lambda seconds: (waits.append(seconds), sleep(min(seconds, 0.01)))
done = []
for job in json.load(sys.stdin):
    os.chdir(job["folder"])
    sys.argv = ["", *job["arguments"]]
    out, err, status = io.StringIO(), io.StringIO(), 0
    waits.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = lambda: exec(job["code"], dict(globals()))
            run(importlib.import_module(job["module"]).main if job["module"] else code)
        except SystemExit as end:
            status = end.code or 0
    done.append({"status": status, "out": out.getvalue(), "err": err.getvalue(), "waits": waits[:]})
print(json.dumps(done))
"""


def job(folder: Path, module: str, *arguments: str, code: str = "") -> dict[str, Any]:
    """A call of a module's `main` in a folder; or, without a module, Python code."""
    return {"folder": str(folder), "module": module, "arguments": arguments, "code": code}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def handler(hub: Hub, large: bool) -> type[BaseHTTPRequestHandler]:
    """The request handler of the Hub itself, or of the address where its large files lie."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.reply()

        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            self.reply()

        def do_PUT(self) -> None:
            self.reply()

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def reply(self) -> None:
            sent = self.body()
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.log.append((self.command, self.path, headers))
            fault = hub.fault(self.command, self.path)
            time.sleep(fault.delay if fault else 0)
            if fault and fault.status:
                answer = Answer(fault.status, fault.headers, fault.body)
            elif large and self.command == "PUT":
                answer = kept(hub, self.path, headers, sent)
            elif large:
                answer = stored(hub, self.path, headers)
            elif self.command == "POST" and (write := WRITE.fullmatch(urlsplit(self.path).path)):
                answer = written(hub, write, headers, sent)
            else:
                answer = answered(hub, self.path, headers, sent)
            body = answer.body[: len(answer.body) - fault.short] if fault else answer.body
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault and fault.cut is not None:
                body = body[: fault.cut]
                self.close_connection = True
            self.wfile.write(body)
            if fault and fault.reset:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    return Handler


def refused(status: int, code: str, message: str) -> Answer:
    body = json.dumps({"error": message}).encode()
    return Answer(status, {"X-Error-Code": code, "X-Error-Message": message}, body)


def part(data: bytes, headers: dict[str, str], more: dict[str, str]) -> Answer:
    """The data, or what a Range asks of it."""
    asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
    if asked is None:
        return Answer(200, {"Accept-Ranges": "bytes", **more}, data)
    start = int(asked[1])
    span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    return Answer(206, {**more, **span}, data[start:])


def stored(hub: Hub, path: str, headers: dict[str, str]) -> Answer:
    """A large file, by its digest."""
    wanted = urlsplit(path).path.rsplit("/", 1)[-1]
    for revisions in hub.repos.values():
        for tree in revisions.values():
            for data in tree.values():
                if sha256(data) == wanted:
                    return part(data, headers, {"ETag": f'"{wanted[:32]}"'})
    return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")


def answered(hub: Hub, path: str, headers: dict[str, str], sent: bytes) -> Answer:
    """A file or a question about a repository."""
    plain = urlsplit(path).path
    file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", plain)
    question = re.fullmatch(r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/([a-z-]+)/([^/]+))?(/.*)?", plain)
    if file:
        repo, revision = file[1], unquote(file[2])
    elif question:
        repo = ("datasets/" if question[1] == "dataset" else "") + question[2]
        revision = unquote(question[4] or "main")
    else:
        return refused(404, "NotFound", "No such page")
    if repo not in hub.repos or headers.get("authorization", "") != bearer(hub, repo, headers):
        known = "authorization" in headers and repo not in hub.repos
        return refused(404 if known else 401, "RepoNotFound", "Repository not found")
    trees = {hub.commit(repo, name): tree for name, tree in hub.repos[repo].items()}
    commit = hub.commit(repo, revision) if revision in hub.repos[repo] else revision
    if commit not in trees:
        return refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if file:
        return resolved(hub, trees[commit], commit, unquote(file[3]), headers)
    return told(question[3] or "revision", question[2], trees[commit], commit, sent)  # type: ignore[index]


def bearer(hub: Hub, repo: str, headers: dict[str, str]) -> str:
    """The header that opens a repository: any for a public one."""
    return f"Bearer {hub.private[repo]}" if repo in hub.private else headers.get("authorization", "")


def resolved(hub: Hub, tree: dict[str, bytes], commit: str, path: str, headers: dict[str, str]) -> Answer:
    """One file, or for a large one the address where it lies."""
    if path not in tree:
        answer = refused(404, "EntryNotFound", "Entry not found")
        return Answer(404, {**answer.headers, "X-Repo-Commit": commit}, answer.body)
    data = tree[path]
    about = {"X-Repo-Commit": commit, "ETag": f'"{git_blob(data)}"'}
    if not path.endswith(LARGE):
        return part(data, headers, about)
    digest = sha256(data)
    linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
    return Answer(
        302, {**about, **linked, "Location": f"{hub.storage}/lfs/{digest}?Signature=signed-address"}
    )


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the API lists it."""
    about = {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
    lfs = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return {**about, "lfs": lfs} if path.endswith(LARGE) else about


def told(question: str, name: str, tree: dict[str, bytes], commit: str, sent: bytes) -> Answer:
    """What the API says of a repository at a commit."""
    found: Any
    if question == "revision":
        siblings = [{"rfilename": path} for path in sorted(tree)]
        found = {"id": name, "sha": commit, "lastModified": DATE, "private": False, "siblings": siblings}
    elif question == "commits":
        author = {"user": "owner", "avatar": ""}
        found = [{"id": commit, "title": "Add", "message": "", "authors": [author], "date": DATE}]
    elif question == "tree":
        found = [entry(path, data) for path, data in sorted(tree.items())]
    elif question == "paths-info":
        asked = parse_qs(sent.decode()).get("paths", [])
        found = [entry(path, tree[path]) for path in asked if path in tree]
    else:
        return refused(404, "NotFound", "No such page")
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())


# Uploads. ------------------------------------------------------------------------------------------------

# What is asked to write: /api/repos/create, /api/validate-yaml; preupload and commit of a model at main; and
# which of its large files are missing.
WRITE = re.compile(
    r"/api/(?P<what>repos/create|validate-yaml)|/api/models/(?P<model>[^/]+/[^/]+)/(?P<step>preupload|commit)/main"
    r"|/(?P<lfs>[^/]+/[^/]+)\.git/info/lfs/objects/batch"
)


def told_as(found: Any, status: int = 200) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(found).encode())


def written(hub: Hub, asked: re.Match[str], headers: dict[str, str], sent: bytes) -> Answer:
    """What the Hub says to one step of an upload."""
    token = headers.get("authorization", "").removeprefix("Bearer ")
    if token not in hub.writers:
        return refused(401, "Unauthorized", "Invalid username or password.")
    if asked["what"] == "validate-yaml":
        good = json.loads(sent)["content"].startswith("---\n")
        error = {"message": "metadata is missing"}
        return told_as({"errors": [] if good else [error], "warnings": []}, 200 if good else 400)
    given = json.loads(sent) if asked["step"] != "commit" else {}
    repo = asked["model"] or asked["lfs"] or f"{given['organization']}/{given['name']}"
    if hub.writers[token] != repo.partition("/")[0]:
        return refused(403, "Forbidden", "You don't have the rights to write here")
    if asked["what"]:
        if repo in hub.repos:
            found = {"error": "You already created this model repo", "url": f"{hub.endpoint}/{repo}"}
            return told_as(found, 409)
        hub.made.append(given)
        hub.repos[repo] = {"main": {}}
        return told_as({"url": f"{hub.endpoint}/{repo}"})
    if repo not in hub.repos:
        return refused(404, "RepoNotFound", "Repository not found")
    if asked["step"] == "preupload":
        return told_as({"files": [awaited(hub.repos[repo]["main"], one["path"]) for one in given["files"]]})
    if asked["lfs"]:
        return told_as({"objects": [missing(hub, one) for one in given["objects"]]})
    return committed(hub, repo, sent)


def awaited(tree: dict[str, bytes], path: str) -> dict[str, Any]:
    """How a file is to be sent, and its digest where it is there."""
    large = path.endswith(LARGE)
    digest = None if path not in tree else sha256(tree[path]) if large else git_blob(tree[path])
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": digest}


def missing(hub: Hub, wanted: dict[str, Any]) -> dict[str, Any]:
    """Where a large file is to be put, unless it is there."""
    if wanted["oid"] in hub.objects:
        return wanted
    href = f"{hub.storage}/put/{wanted['oid']}?Signature=signed-address"
    return {**wanted, "actions": {"upload": {"href": href}}}


def kept(hub: Hub, path: str, headers: dict[str, str], sent: bytes) -> Answer:
    """A large file that is put where the Hub said; to this address no token may go."""
    digest = urlsplit(path).path.rsplit("/", 1)[-1]
    if "authorization" in headers or sha256(sent) != digest:
        return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    hub.objects[digest] = sent
    return Answer(200, {"ETag": f'"{digest[:32]}"'})


def committed(hub: Hub, repo: str, sent: bytes) -> Answer:
    """Put all the files of a commit into the tree, or none."""
    tree = dict(hub.repos[repo]["main"])
    changed = []
    for line in filter(None, sent.split(b"\n")):
        one = json.loads(line)
        if one["key"] == "file":
            tree[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
        elif one["key"] == "lfsFile":
            tree[one["value"]["path"]] = hub.objects[one["value"]["oid"]]
        else:
            assert one["key"] == "header", one
            continue
        changed.append(one["value"]["path"])
    hub.repos[repo]["main"] = tree
    hub.commits.pop((repo, "main"), None)
    hub.history.append((repo, sorted(changed)))
    commit = hub.commit(repo, "main")
    return told_as(
        {"success": True, "commitOid": commit, "commitUrl": f"{hub.endpoint}/{repo}/commit/{commit}"}
    )
