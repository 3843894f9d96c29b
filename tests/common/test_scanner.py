"""The scanner: what it finds in text, and what it says about the labels of a pair."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common import scanner
from stages.common.scanner import Finding, Label, findings, label

ROOT = Path(__file__).parents[2]
EVAL = Finding("EVAL", "CWE-95", "MEDIUM", "HIGH")


def names(code: str, language: str = "python") -> set[str] | None:
    found = findings(code, language)
    return None if found is None else {finding.test for finding in found}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", set()),
        ("x = eval(data)\n", {"B307"}),
        ("x = eval(data)  # nosec\n", {"B307"}),
        ("import os\r\nos.system('ls ' + x)\r\n", {"B605"}),
        ("import hashlib\nhashlib.md5(p)", {"B324"}),
        ("    def f(self):\n        return eval(self.x)\n", {"B307"}),
        ("\tdef f(self):\n\t\treturn eval(self.x)\n", {"B307"}),
        ("cur.execute('select a from t where b = %s', (b,))", set()),
        ("s = '\\d' is '\\d'", set()),
        ("print 'hello'", None),
        ("def f(:", None),
        ("x = '\0'", None),
        ("x = '\ud800'", None),
        ("(" * 5_000, None),
        ("a" + ".b" * 20_000, None),
        ("-" * 20_000 + "1", None),
        ("x = 1\n" * scanner.MAX_LINES, None),
        ("x = " + "1 + " * (scanner.MAX_ADDITIONS + 1) + "1", None),
        ("#" * (scanner.MAX_CHARS + 1), None),
    ],
)
def test_python_is_scanned_or_not(code, expected):
    assert names(code) == expected


def test_a_finding_says_what_bandit_says():
    assert findings("eval(x)", "python") == {Finding("B307", "CWE-78", "MEDIUM", "HIGH")}
    assert findings("eval(x)", "Python 3") == findings("eval(x)", "py") == findings("eval(x)", "python")


@pytest.mark.parametrize(
    ("language", "code", "found"),
    [
        ("javascript", "eval(x)", True),
        ("js", "window.eval(`1 + ${x}`)", True),
        ("javascript", "(0, eval)(x)", True),
        ("javascript", "eval('1' + x)", True),
        ("javascript", "eval('1 + \\n 1'); eval(`2`); eval()", False),
        ("javascript", "model.eval(x); evaluate(x); // eval(x)\nlet s = 'eval(x)'", False),
        ("typescript", "const y: number = eval(x as string)", True),
        ("typescript", "const y: number = Number(x)", False),
        ("php", "<?php eval($x);", True),
        ("php", 'eval("return $x;");', True),
        ("php", "<?php eval('return 1;'); $o->eval($x);", False),
        ("ruby", "eval x\n", True),
        ("ruby", 'Kernel.eval("#{x}")\n', True),
        ("ruby", "eval 'x'\nobj.eval(x)\n", False),
        ("ruby", "", False),
    ],
)
def test_eval_elsewhere(language, code, found):
    assert findings(code, language) == (frozenset({EVAL}) if found else frozenset())


@pytest.mark.parametrize("language", ["", "c", "cobol"])
def test_a_language_without_rules_is_not_scanned(language):
    assert findings("eval(x)", language) is None


SQL = "def f(c, n):\n    return c.execute('select a from t where n = ' + n)\n"
BOUND = "def f(c, n):\n    return c.execute('select a from t where n = ?', (n,))\n"
SHELL = "import os\ndef f(n):\n    os.system('ls ' + n)\n"
POPEN = "import subprocess\ndef f(n):\n    subprocess.run(n, shell=True)\n"
NO_SHELL = "import subprocess\ndef f(n):\n    subprocess.run(['ls', n])\n"
TABLE = "def f(n):\n    q = f'select a from {TABLE} where n = ?'\n    return run(q, n)\n"
PASTED = "def f(n):\n    q = f'select a from {TABLE} where n = {n}'\n    return run(q)\n"
YAML = "import yaml\nyaml.load(x)"
RANDOM = "import random\nt = random.random()"
PLAIN = "def f(n):\n    return n\n"


@pytest.mark.parametrize(
    ("vulnerable", "fixed", "language", "cwe", "outcome"),
    [
        (SQL, BOUND, "python", "CWE-89", ""),
        (BOUND, SQL, "python", "CWE-89", "reversed"),
        (SQL, SQL, "python", "CWE-89", "mislabelled"),
        (BOUND, BOUND, "python", "CWE-89", "unflagged"),
        (PASTED, TABLE, "python", "CWE-89", ""),  # confidence LOW, and the value is bound
        (BOUND, TABLE, "python", "CWE-89", "reversed"),
        (SHELL, NO_SHELL, "python", "CWE-78", ""),  # B603, B607 and B404 flag the repair
        (SHELL, POPEN, "python", "CWE-78", "mislabelled"),
        (SHELL, POPEN, "python", "CWE-77", "mislabelled"),
        (SHELL, POPEN, "python", "CWE-89", "unflagged"),
        ("eval(x)", "eval(x, {})", "python", "CWE-94", "mislabelled"),
        ("eval(x)", "eval(x, {})", "python", "CWE-95", "mislabelled"),
        (YAML, "import yaml\nyaml.load(x, yaml.Loader)", "python", "CWE-502", "mislabelled"),
        (YAML, "import yaml\nyaml.safe_load(x)", "python", "CWE-502", ""),
        (RANDOM, "import secrets\nt = secrets.choice(x)", "python", "CWE-338", ""),
        ("p = password = 'hunter2'", "import os\np = os.environ['P']", "python", "CWE-798", ""),
        # no weakness declared
        (SHELL, POPEN, "python", "", ""),
        (SHELL, SHELL, "python", "", "mislabelled"),
        (PLAIN, SHELL, "python", "", "unflagged"),
        ("assert x", "assert x", "python", "", "unflagged"),
        # no vulnerable side
        ("", SHELL, "python", "", "mislabelled"),
        ("", "import requests\nrequests.get(u)\nassert x", "python", "", ""),
        ("", SHELL, "python", "CWE-89", ""),
        ("", SQL, "python", "CWE-89", "mislabelled"),
        ("", PLAIN, "python", "CWE-89", ""),
        # not scannable
        ("print 'a'", SHELL, "python", "CWE-78", "mislabelled"),
        ("print 'a'", SHELL, "python", "", ""),
        (SHELL, "print 'a'", "python", "CWE-78", ""),
        (PLAIN, "print 'a'", "python", "CWE-78", "unflagged"),
        ("gets(s)", "gets(s)", "c", "CWE-242", ""),
        # other languages
        ("eval(x)", "JSON.parse(x)", "javascript", "CWE-95", ""),
        ("JSON.parse(x)", "eval(x)", "javascript", "CWE-94", "reversed"),
        ("f(x)", "g(x)", "javascript", "CWE-95", "unflagged"),
        ("f(x)", "g(x)", "javascript", "CWE-79", ""),  # nothing here can see that
        ("", "eval(x)", "javascript", "", "mislabelled"),
    ],
)  # fmt: skip
def test_labels(vulnerable, fixed, language, cwe, outcome):
    assert label(vulnerable, fixed, language, cwe).outcome == outcome


def test_a_label_names_its_findings_in_order():
    assert label("", f"{SHELL}eval(x)", "python", "") == Label(
        "mislabelled", "B307 (CWE-78, MEDIUM), B605 (CWE-78, HIGH)"
    )


def test_families_do_not_overlap():
    members = [cwe for family in scanner.FAMILIES for cwe in family]
    assert len(members) == len(set(members))


def test_tests_with_more_than_one_weakness_exist_in_bandit():
    from bandit.core.extension_loader import MANAGER

    assert set(scanner.ALSO) <= {*MANAGER.plugins_by_id, *MANAGER.blacklist_by_id, "EVAL"}


def test_nothing_is_logged_or_printed(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        findings("s = '\\d' is 1\nfrom . import *\neval(x)  # nosec: B999\n", "python")
    assert not [record for record in caplog.records if record.name.startswith("bandit")]
    assert tuple(capfd.readouterr()) == ("", "")


def test_bandit_is_imported_at_the_first_scan_only():
    code = (
        "import sys; from stages.common import scanner; "
        "print('bandit' in sys.modules); scanner.findings('x', 'python'); print('bandit' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
