"""A run that is pushed to a remote: another clone pulls it, runs nothing, and hears of what is missing."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Clone, cloned, read_yaml

pytestmark = pytest.mark.smoke

KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret"}
QUIET = {
    "no_proxy": "127.0.0.1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
Delete = Callable[[str], None]  # an object of the remote, by its MD5


class Remote:
    """Where outputs are shared: the commands that add it, and what each clone must add for itself."""

    def __init__(self, added: list[list[str]], local: list[list[str]], delete: Delete) -> None:
        self.added, self.local, self.delete = added, local, delete


def folder(scratch: Path) -> Iterator[Remote]:
    """A folder that both see."""
    path = scratch / "store"
    yield Remote(
        [["add", "--default", "store", str(path)]],
        [],
        lambda key: (path / "files/md5" / key[:2] / key[2:]).unlink(),
    )


def bucket(scratch: Path) -> Iterator[Remote]:
    """A bucket of an S3 server on loopback; the second clone has its credentials in .dvc/config.local."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        names = dict(zip(("aws_access_key_id", "aws_secret_access_key"), KEYS.values(), strict=True))
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **names)
        client.create_bucket(Bucket="coder-agent")
        yield Remote(
            [
                ["add", "--default", "store", "s3://coder-agent/cache"],
                ["modify", "store", "endpointurl", url],
            ],
            [
                ["modify", "--local", "store", "access_key_id", KEYS["AWS_ACCESS_KEY_ID"]],
                ["modify", "--local", "store", "secret_access_key", KEYS["AWS_SECRET_ACCESS_KEY"]],
            ],
            lambda key: client.delete_object(
                Bucket="coder-agent", Key=f"cache/files/md5/{key[:2]}/{key[2:]}"
            ),
        )
    finally:
        server.stop()


@pytest.fixture(scope="module", params=[folder, bucket], ids=lambda kind: kind.__name__)
def shared(
    request: pytest.FixtureRequest, committed: Clone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Clone, Remote]]:
    """The committed run, pushed to a remote that its .dvc/config names."""
    before = committed.checked("git", "rev-parse", "--abbrev-ref", "HEAD").strip()
    committed.environment |= QUIET
    environment = committed.environment
    for remote in request.param(tmp_path_factory.mktemp("remote")):
        committed.checked("git", "switch", "-q", "-c", request.param.__name__)
        for arguments in remote.added:
            committed.checked("dvc", "remote", *arguments)
        committed.checked("git", "commit", "-q", "-a", "-m", "Share the outputs")
        committed.environment = environment | KEYS
        assert "pushed" in committed.checked("dvc", "push")
        committed.environment = environment
        yield committed, remote
        committed.checked("git", "switch", "-q", before)


def other(shared: tuple[Clone, Remote], scratch: Path) -> Clone:
    """A clone on another machine, with what the remote asks of it."""
    origin, remote = shared
    made = cloned(origin, scratch)
    made.environment |= QUIET
    for arguments in remote.local:
        made.checked("dvc", "remote", *arguments)
    return made


def outputs(clone: Clone) -> dict[str, str]:
    stages = read_yaml(clone.root / "dvc.lock")["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def test_another_clone_runs_nothing_and_gets_the_same_bytes(
    shared: tuple[Clone, Remote], tmp_path: Path
) -> None:
    clone = other(shared, tmp_path)
    said = clone.checked("dvc", "repro", "--pull", "--allow-missing")
    assert "Running stage" not in said and "up to date" in said
    clone.checked("dvc", "pull")
    assert "up to date" in clone.checked("dvc", "status")
    for name in outputs(clone):
        theirs, ours = (one.root / name for one in (shared[0], clone))
        pairs = [(theirs, ours)] if ours.is_file() else [(theirs / one.name, one) for one in ours.iterdir()]
        assert pairs and all(one.read_bytes() == two.read_bytes() for one, two in pairs if two.is_file())
    assert "Running stage" not in clone.checked("dvc", "repro")
    assert not clone.checked("git", "status", "--porcelain")
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in (clone.root / ".dvc/config").read_text(encoding="utf-8")


def test_an_object_that_the_remote_lacks_is_named(shared: tuple[Clone, Remote], tmp_path: Path) -> None:
    name = "reports/verdicts/tuned.jsonl"
    clone = other(shared, tmp_path)
    shared[1].delete(outputs(clone)[name])
    done = clone.run("dvc", "pull")
    assert done.returncode == 1
    assert outputs(clone)[name] in done.stderr and name in done.stderr
    assert (clone.root / "reports/verdicts/base.jsonl").exists(), "the others are there"
    said = clone.checked("dvc", "repro")  # and what is missing can be made again
    assert "Running stage 'score@tuned'" in said and "Running stage 'generate" not in said
    assert not clone.checked("git", "status", "--porcelain")


def test_without_credentials_a_bucket_says_so(shared: tuple[Clone, Remote], tmp_path: Path) -> None:
    if not shared[1].local:
        pytest.skip("a folder asks for none")
    clone = other((shared[0], Remote([], [], shared[1].delete)), tmp_path)
    done = clone.run("dvc", "pull")
    assert done.returncode != 0 and "Unable to locate credentials" in done.stderr
