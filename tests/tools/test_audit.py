"""Licences of the locked packages, and what is made of the auditor's answers."""

import json
import stat
from email.message import Message
from pathlib import Path

import pytest
from conftest import ROOT

from stages.common.errors import PipelineError
from tools import audit, locks


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("Apache-2.0 AND MIT", "permissive"),
        ("MIT OR GPL-3.0-only", "permissive"),
        ("GPL-3.0-only AND MIT", "strong copyleft"),
        ("AGPL-3.0-or-later", "strong copyleft"),
        ("GNU General Public License v3 (GPLv3)", "strong copyleft"),
        ("LGPL-2.1-only", "weak copyleft"),
        ("GPLv2 | EPLv1", "weak copyleft"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "weak copyleft"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "weak copyleft"),
        ("NVIDIA Proprietary Software", "proprietary"),
        ("MIT AND LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("not stated", "unknown"),
        (audit.UNREAD, "unknown"),
    ],
)
def test_kinds(licence: str, kind: str) -> None:
    assert audit.kind(licence) == kind


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT"), ("License", "other")], "MIT"),
        ([("License", "BSD-3-Clause")], "BSD-3-Clause"),
        ([("License", "x" * 61), ("Classifier", "License :: OSI Approved :: MIT License")], "MIT License"),
        ([("License", "UNKNOWN"), ("Classifier", "Topic :: Software")], "not stated"),
    ],
)
def test_what_a_package_says_of_itself(fields: list[tuple[str, str]], licence: str) -> None:
    message = Message()
    for name, value in fields:
        message[name] = value
    assert audit.stated("some", message) == licence


def test_a_table_keeps_what_cannot_be_read_here() -> None:
    versions = {"dog": "1", "two": "1, 2", "triton": "3", "new": "4"}
    before = audit.render([audit.Row("triton", "2", "GPLv2 | EPLv1"), audit.Row("gone", "1", "MIT")])
    rows = audit.rows(versions, {"dog": "MIT", "two": "LGPL-2.1-only"}, audit.parsed(before))
    text = audit.render(rows)
    assert audit.parsed(text) == {
        "dog": "MIT",
        "two": "LGPL-2.1-only",
        "triton": "GPLv2 | EPLv1",
        "new": audit.UNREAD,
    }
    assert "4 packages: 1 permissive, 2 weak copyleft, 1 unknown." in text
    assert "- weak copyleft: two, triton\n" in text


def test_the_committed_table_names_every_locked_package() -> None:
    versions = audit.locked(locks.read(ROOT / "requirements.lock"))
    text = (ROOT / audit.TABLE).read_text(encoding="utf-8")
    lines = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ")]
    assert {name.removeprefix("| "): version for name, version in lines[2:]} == versions
    assert audit.UNREAD not in text
    assert "strong copyleft" not in text


def auditor(folder: Path, answer: object) -> str:
    """A program that answers as pip-audit does."""
    path = folder / "pip-audit"
    text = answer if isinstance(answer, str) else json.dumps(answer)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\necho could not connect >&2\nexit 1\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


FLAW = {"id": "CVE-1", "fix_versions": ["2"]}
ASKED = {"name": "six", "version": "1", "vulns": [FLAW]}
SKIPPED = {"name": "own", "skip_reason": "not on PyPI"}


def test_a_known_vulnerability_is_told_once(tmp_path: Path) -> None:
    found = audit.answers(auditor(tmp_path, {"dependencies": [ASKED, ASKED, SKIPPED]}), ["requirements.lock"])
    assert found == (["six 1: CVE-1, mended in 2"], ["own"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [("", "pip-audit says could not connect"), ({"dependencies": [SKIPPED]}, "knows none of 1 packages")],
)
def test_no_answer_is_not_taken_for_a_good_one(
    answer: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = auditor(tmp_path, answer)
    with pytest.raises(PipelineError, match=said):
        audit.vulnerabilities(program, strict=True)
    assert audit.vulnerabilities(program, strict=False)
    assert "audit: not asked. vulnerabilities: " in capsys.readouterr().err
