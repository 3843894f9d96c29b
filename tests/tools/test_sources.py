"""Files and diffs as functions: what is asked about, and that what is not is named."""

import os
import subprocess
from pathlib import Path

import pytest

from stages.common import languages
from stages.common.errors import PipelineError
from tools import sources
from tools.sources import Piece, Skipped

PYTHON = """import os


class Users:
    @property
    def name(self):
        def inner():
            return 1
        return inner()


def run(command):
    os.system("ping " + command)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_is_cut_into_its_outermost_functions(here: Path) -> None:
    found, skipped = sources.pieces(write(here / "src/app.py", PYTHON), 4_000)
    first = "@property\ndef name(self):\n    def inner():\n        return 1\n    return inner()"
    assert found == [
        Piece("src/app.py", 5, 9, "python", first),
        Piece("src/app.py", 12, 13, "python", 'def run(command):\n    os.system("ping " + command)'),
    ]
    assert skipped == []


@pytest.mark.parametrize(
    ("name", "text", "language", "lines"),
    [
        ("a.js", "const f = (x) => {\n  eval(x);\n};\nf(1);\n", "javascript", (1, 3)),
        ("a.c", "#include <stdio.h>\r\nint f(void)\r\n{\r\n  return 1;\r\n}\r\n", "c", (2, 5)),
        ("a.h", "static int f(void) { return 1; }", "c", (1, 1)),
        ("A.java", "class A {\n  void f() {\n    g();\n  }\n}\n", "java", (2, 4)),
        ("a.php", "<?php\nfunction f($x) {\n  echo $x;\n}\n", "php", (2, 4)),
        ("a.go", "package a\n\nfunc f() int {\n\treturn 1\n}\n", "go", (3, 5)),
        ("script.py", "import os\nos.system(input())\n", "python", (1, 2)),
        ("bom.py", b"\xef\xbb\xbfdef f():\n    pass\n", "python", (1, 2)),
        ("broken.py", "def f(:\n  return (\n\n", "python", (1, 1)),
    ],
)
def test_languages_line_ends_and_files_without_functions(
    name: str, text: str | bytes, language: str, lines: tuple[int, int], here: Path
) -> None:
    [piece], skipped = sources.pieces(write(here / name, text), 4_000)
    assert (piece.language, (piece.start, piece.end), skipped) == (language, lines, [])
    assert "\r" not in piece.code and "\ufeff" not in piece.code


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.py", b"\x00\x01", "binary"),
        ("a.py", b"\xff\xfe\xfa", "not UTF-8"),
        ("a.py", b"#" * (languages.MAX_BYTES + 1), "2,000,001 bytes, more than 2,000,000"),
        ("a.txt", b"x", ".txt: no supported language"),
        ("a.css", b"a { b: c }", ".css: no supported language"),
        ("Makefile", b"x:\n", "no suffix: no supported language"),
        ("a.c", b"x = " + b"a < " * 2_000, "the grammar of c could not read it in time"),
        (
            "long.py",
            b"x = 1\n" * 100,
            "a file without functions of 599 characters, more than 50 (--max-chars)",
        ),
    ],
)
def test_what_cannot_be_asked_about_is_named(name: str, data: bytes, reason: str, here: Path) -> None:
    found, skipped = sources.pieces(write(here / name, data), 50)
    assert found == [] and [one.reason for one in skipped] == [reason]


def test_a_long_function_is_named_by_its_line(here: Path) -> None:
    text = "def f():\n    pass\n\n\ndef g():\n" + "    x = 1\n" * 50
    found, skipped = sources.pieces(write(here / "a.py", text), 60)
    assert [piece.start for piece in found] == [1]
    assert skipped == [Skipped("a.py:5", "a function of 508 characters, more than 60 (--max-chars)")]


@pytest.mark.parametrize("text", ["", "\n\n", "   ", "# only a comment"])
def test_empty_files_are_no_error(text: str, here: Path) -> None:
    found, skipped = sources.pieces(write(here / "a.py", text), 4_000)
    assert len(found) == ("#" in text) and skipped == []


def test_folders_are_walked_in_order_without_links_and_others_code(here: Path) -> None:
    for name in (
        "src/b.py",
        "src/a.py",
        "src/.hidden.py",
        "src/node_modules/c.py",
        "src/.git/d.py",
        "src/z/e.py",
    ):
        write(here / name, "def f():\n    pass\n")
    write(here / "src/note.txt", "x")
    write(here / "src/logo.png", b"\x89")
    (here / "src/link.py").symlink_to(here / "src/a.py")
    (here / "src/loop").symlink_to(here)
    found, skipped = sources.of_paths([Path("src"), Path("src/a.py"), here / "src/b.py"], 4_000)
    assert [piece.path for piece in found] == ["src/a.py", "src/b.py", "src/z/e.py"]
    assert skipped == [Skipped("src", "2 files of no supported language (1 .png, 1 .txt)")]


def test_what_is_not_there_is_refused(here: Path) -> None:
    with pytest.raises(PipelineError, match="gone: not found; expected a file or a folder"):
        sources.of_paths([Path("gone")], 4_000)


def test_a_path_elsewhere_is_printed_whole(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = write(tmp_path_factory.mktemp("other") / "a.py", "x = 1\n")
    assert sources.shown(other) == str(other)
    assert sources.shown(Path("a/../b.py")) == "b.py"
    assert sources.shown(Path("a\udcff.py")) == "a\ufffd.py"


def test_a_pipe_is_not_waited_for(here: Path) -> None:
    os.mkfifo(here / "a.py")
    assert sources.pieces(here / "a.py", 4_000)[1] == [Skipped("a.py", "no regular file")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(here: Path) -> None:
    path = write(here / "a.py", "x = 1\n")
    path.chmod(0)
    assert sources.pieces(path, 4_000)[1] == [Skipped("a.py", "Permission denied")]


# Diffs. --------------------------------------------------------------------------------------------------

DIFF = """diff --git a/old.py b/old.py
deleted file mode 100644
--- a/old.py
+++ /dev/null
@@ -1 +0,0 @@
-x = 1
diff --git a/a.py b/b.py
similarity index 90%
rename from a.py
rename to b.py
--- a/a.py
+++ b/b.py
@@ -2,3 +2,4 @@ def f():
 one
-two
+++ b/not-a-head.py
+more
 three
@@ -20 +21,0 @@
-gone
\\ No newline at end of file
diff --git "a/\\303\\244 \\"b\\".py" "b/\\303\\244 \\"b\\".py"
--- "a/\\303\\244 \\"b\\".py"
+++ "b/\\303\\244 \\"b\\".py"
@@ -0,0 +1 @@
+new
diff --git a/x.bin b/x.bin
Binary files a/x.bin and b/x.bin differ
"""


def test_a_diff_is_read_by_its_hunks() -> None:
    changes = sources.parse(DIFF)
    assert list(changes) == ["b.py", 'ä "b".py']
    assert changes["b.py"].added == {2: "++ b/not-a-head.py", 3: "more"}
    assert changes["b.py"].lines == {1, 2, 3, 20, 21}
    assert changes['ä "b".py'].added == {0: "new"}


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        ("+++ b/a.py\n@@@ -1 -1 +1 @@@\n", "of a merge"),
        ("+++ b/a.py\n@@ -1,2 +1,2 @@\n one\n", "ends inside a hunk"),
        ("+++ b/a.py\n@@ -1,2 +1,2 @@\n one\nrubbish\n", "'rubbish' inside a hunk"),
    ],
)
def test_other_diffs_are_refused(diff: str, told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        sources.parse(diff)


@pytest.mark.parametrize("diff", ["", "hello\n", "@@ -1 +1 @@\n-a\n+b\n"])
def test_a_text_without_files_changes_nothing(diff: str) -> None:
    assert sources.parse(diff) == {}


def git(*arguments: str) -> None:
    names = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *names, *arguments], check=True, capture_output=True)


def test_functions_that_differ_from_a_revision(here: Path) -> None:
    three = "def a():\n    return 1\n\n\ndef b():\n    return 2\n\n\ndef c():\n    x = 1\n    return x\n"
    write(here / "src/ä b.py", three)
    write(here / "src/same.py", three)
    write(here / "note.txt", "one\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "One")
    write(here / "src/ä b.py", three.replace("return 2", "return 20").replace("    x = 1\n", ""))
    write(here / "note.txt", "two\n")
    write(here / "new.py", "def n():\n    pass\n")
    git("add", "new.py")
    os.chdir(here / "src")
    found, skipped = sources.of_diff(*sources.git_diff("HEAD"), 4_000)
    assert [(Path(piece.path).name, piece.start) for piece in found] == [
        ("new.py", 1),
        ("ä b.py", 5),
        ("ä b.py", 9),
    ]
    assert [one.reason for one in skipped] == [".txt: no supported language"]
    assert found[1].path == "ä b.py" and found[0].path == str(here / "new.py")


def test_a_diff_that_leads_elsewhere_is_named(here: Path) -> None:
    root = write(here / "repo/b.py", "x = 1\n").parent
    write(here / "out.py", "x\n")
    new = "@@ -0,0 +1 @@\n+x\n"
    diff = f"+++ b/b.py\n@@ -1 +1 @@\n-x\n+y = 2\n+++ b/gone.py\n{new}+++ b/../out.py\n{new}"
    found, skipped = sources.of_diff(diff, root, 4_000)
    assert found == []
    assert [(one.where, one.reason.split(" below")[0]) for one in skipped] == [
        ("repo/b.py", "the file is not what the diff leads to"),
        ("gone.py", "no such file"),
        ("../out.py", "no such file"),
    ]


@pytest.mark.parametrize("revision", ["nothing", "--output=x"])
def test_a_revision_that_is_none_is_told(revision: str, here: Path) -> None:
    with pytest.raises(PipelineError, match="expected a revision of this repository"):
        sources.git_diff(revision)  # no repository at all
    git("init", "-q")
    with pytest.raises(PipelineError, match="expected a revision of this repository"):
        sources.git_diff(revision)
    assert not (here / "x").exists() and sources.git_root() == here
