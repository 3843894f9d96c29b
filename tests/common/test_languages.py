import doctest
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.common import languages

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared/data"

# A function of each language, which its grammar reads without a fault.
CLEAN = {
    "bash": 'f() {\n  if [ -z "$1" ]; then\n    echo none\n  fi\n}\n',
    "c": "#include <stdio.h>\nint f(char *s)\n{\n  printf(s);\n  return 0;\n}\n",
    "cpp": "#include <string>\ntemplate <class T>\nT f(std::string s) {\n  return s.size();\n}\n",
    "csharp": 'class A {\n  [Obsolete]\n  public string F(int a) {\n    Console.WriteLine("a");\n  }\n}\n',
    "css": "a.b {\n  color: red;\n}\n",
    "fortran": "subroutine f(x)\n  integer :: x\n  print *, x\nend subroutine\n",
    "go": "package a\n\nfunc f() int {\n\tx := 1\n\treturn x\n}\n",
    "html": "<!DOCTYPE html>\n<html><body><p>x</p></body></html>\n",
    "java": "class A {\n  @Override\n  public String f(int a) {\n    return null;\n  }\n}\n",
    "javascript": "const f = (x) => {\n  console.log(x);\n  return x === 1;\n};\n",
    "kotlin": "fun f(a: Int): Int {\n  val b = a\n  println(b)\n  return b\n}\n",
    "php": "function f($a) {\n  echo $a;\n  return $a->b;\n}\n",
    "python": "@cache\ndef f(a):\n    if a is None:\n        return 1\n    return a\n",
    "ruby": "def f(a)\n  puts a\n  nil\nend\n",
    "rust": "#[test]\nfn f() -> i32 {\n  let mut a = 1;\n  a\n}\n",
    "sql": "SELECT a FROM b WHERE c = 1 GROUP BY a;\n",
    "swift": "func f(a: Int) -> Int {\n  guard a > 0 else { return 0 }\n  let b = a\n  return b\n}\n",
    "typescript": "interface A {\n  a: string;\n}\nfunction f(x: number): string {\n  return '';\n}\n",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("C++", "cpp"), ("cc", "cpp"), (".hpp", "cpp"), ("c++ 17", "cpp"), ("C#", "csharp"), ("h", "c")),
        *(("js", "javascript"), ("JSX", "javascript"), ("Node.js", "javascript"), ("tsx", "typescript")),
        *(
            ("py", "python"),
            ("Python 3.8", "python"),
            ("python3", "python"),
            ("golang", "go"),
            ("RB", "ruby"),
        ),
        *(
            ("shell", "bash"),
            ("Shell Script", "bash"),
            ("Objective C", "objective-c"),
            ("VB.NET", "visual-basic"),
        ),
        *((" COBOL ", "cobol"), ("", ""), (".", "."), ("Emacs  Lisp", "emacs lisp")),
    ],
)
def test_a_language_has_one_name(name: str, expected: str) -> None:
    assert languages.canonical(name) == expected
    assert languages.canonical(expected) == expected


def test_every_grammar_goes_by_its_canonical_name() -> None:
    assert set(languages.GRAMMARS) == set(CLEAN)
    assert [languages.canonical(name) for name in languages.GRAMMARS] == list(languages.GRAMMARS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write a Python program to sort a list", "python"),
        ("Reverse a string in JavaScript.", "javascript"),
        ("Write an SQL query", "sql"),
        ("Create a C# class", "csharp"),
        ("print a date using PHP", "php"),
        ("Write a c++ code that copies a string", "cpp"),
        ("Create a function in C to add", "c"),
        ("Insert a line in the C source code", "c"),
        ("Create a program in Go that sums", "go"),
        ("Write a Swift closure", "swift"),
        ("Create a package in R called x", "r"),
        ("Design a Objective C program", "objective-c"),
        ("Write a shell script", "bash"),
        ("Write a Java program", "java"),
        *(
            (text, "")
            for text in ("", "Go through the list", "Taylor Swift sang", "a swift reply", "rust removal")
        ),
        *(
            (text, "")
            for text in ("store it in matrix C?", "grade A, B, C", "Vitamin C is good", "a basic page")
        ),
        *((text, "") for text in ("HTML and CSS", "Convert this Java code to Python", "a C-major chord")),
    ],
)
def test_a_request_names_one_language_or_none(text: str, expected: str) -> None:
    assert languages.mentioned(text) == expected


@pytest.mark.parametrize("language", CLEAN)
def test_clean_code_has_no_faults_and_names_itself(language: str) -> None:
    code = CLEAN[language]
    assert languages.error_share(code, language) == 0
    assert not languages.truncated(code, language)
    assert languages.comment_share(code, language) == 0
    family = {"cpp": "c", "typescript": "javascript"}.get(language, language)
    assert languages.detect(code) in (family, "")


def test_most_languages_are_detected() -> None:
    named = [language for language, code in CLEAN.items() if languages.detect(code)]
    assert len(named) >= 16, named


@pytest.mark.parametrize("language", sorted(set(CLEAN) - {"html", "bash"}))
def test_damage_is_found_and_bounded(language: str) -> None:
    lines = CLEAN[language].split("\n")
    broken = "\n".join([*lines[:2], "))) ]] ;; ((( = = '", *lines[2:]])
    share = languages.error_share(broken, language)
    assert share is not None
    assert 0 < share <= 1
    errors = languages.errors_per_line(broken, language)
    assert errors is not None
    assert len(errors) == broken.count("\n") + 1
    assert sum(errors) > 0


@pytest.mark.parametrize(
    ("language", "torn"),
    [
        ("c", "main(argc)\n{\n  return 0;\n}\n"),
        ("cpp", "virtual void f() override {\n}\n"),
        ("csharp", "  public override string F() => a;\n  [A] private int x;\n"),
        ("java", "    @Override\n    public int f() {\n        return 1;\n    }\n"),
        ("java", "if (a > 1) {\n    return;\n}\nint b = f();\n"),
        ("javascript", "  render() {\n    return 1;\n  }\n"),
        ("javascript", "  f: function () {\n    return 1;\n  },\n  g() { }\n"),
        ("kotlin", "  override fun f() {}\n"),
        ("php", "public function f() {\n  return 1;\n}\n"),
        ("php", "<?php\nfunction f() { }\n?>\n<p>text</p>\n"),
        ("python", "    def f(self):\n        return 1\n"),
        ("python", "@x\n    def f(self):\n        return 1\n"),
        ("python", "    def f(self):\r\n\r\n        return 1\r\n"),
        ("rust", "pub fn f(&self) -> i32 {\n    1\n}\n"),
        ("swift", "override init() {\n}\n"),
        ("typescript", "  private f(a: string): void {\n  }\n"),
    ],
)
def test_code_torn_out_of_its_place_is_not_broken(language: str, torn: str) -> None:
    assert languages.error_share(torn, language) == 0


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("csharp", "class A { void F() {\n  c.Open();Bs\n  string q = null; } }"),  # a stray word
        ("go", 'package a\n\nimport (\n\t"os"\n)Bs\n\nfunc f() {\n\tos.Exit(1)\n}\n'),
        ("java", "class A { void f() {\n  g();Bs\n } }"),
        ("python", "f(1)Bs\n"),
        ("python", "for x in y:\nif x:\nprint(x)\n"),  # the indentation is lost
        ("python", "def f():\n    # to be done\n"),
        ("kotlin", "val x = 1\na 'yaml'\nval y = 2\n"),  # its grammar skips the rest
        ("java", "class A { } }"),  # more brackets closed than opened, wrapper or not
        ("java", "void f() { } } void g() {"),
        ("cpp", "f(\n"),
    ],
)
def test_small_damage_counts(language: str, code: str) -> None:
    assert languages.error_share(code, language) > 0


def test_a_nul_is_a_blank() -> None:
    assert languages.error_share("x =\0 1\n", "python") == 0


def test_shares_without_a_grammar_are_unknown() -> None:
    for language in ("", "cobol"):
        assert languages.error_share("x", language) is None
        assert languages.comment_share("x", language) is None
        assert languages.errors_per_line("x", language) is None
        assert languages.functions("x", language) == []
        assert languages.blocks("x", language) == []
        assert not languages.truncated("x", language)


def test_a_fault_is_counted_once_and_on_its_line() -> None:
    assert languages.errors_per_line("a = 1\n)\nb = 2\n", "python") == [0, 1, 0, 0]
    assert languages.error_share("a = 1\n)\nb = 2\n", "python") == 1 / 14
    assert languages.error_share("int f() { g(; }", "c") == pytest.approx(1 / 15)
    assert languages.error_share("((((", "c") == 1


def test_comments_are_weighed_without_white_space() -> None:
    assert languages.comment_share("# ab\nx=1\n", "python") == 3 / 6
    assert languages.comment_share("/* a */ int x; // b\n", "c") == 8 / 13
    assert languages.comment_share("# only\n", "python") == 1
    assert languages.comment_share("", "python") == 0


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "x = foo(1,\n"),
        ("python", 'def f():\n    x = """text\n'),
        ("python", "if a:\n    b()\nelse:\n"),
        ("python", "try:\n    a()\n    b(\n"),
        ("c", "int f() {\n  int a = 1;\n  if (a) {\n    g(a"),
        ("java", "class A {\n  void f() {\n    try {\n      g();\n      String s = h"),
        ("javascript", "function f() {\n  let s = `a"),
        ("javascript", "function f() {\n  return 1;\n"),
        ("ruby", "class A\n  def f\n    puts 1\n"),
        ("go", "package a\n\nfunc f() {\n\tx := []int{1, 2,"),
    ],
)
def test_a_cut_end_is_seen(language: str, code: str) -> None:
    assert languages.truncated(code, language)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("java", "class A {\n  void f() {\n    g();Bs\n    h();\n  }\n}\n"),  # broken, but not at its end
        ("java", "class A } } {\n  void f("),  # broken at its start too
        ("python", "The result is 5, as the list is sorted."),
        ("python", "a = 1\nb = 2\n"),
        ("c", ""),
    ],
)
def test_other_ends_are_not_cut(language: str, code: str) -> None:
    assert not languages.truncated(code, language)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The quick brown fox jumps over the lazy dog.",
        "Write a function that returns the sum of two numbers, and print it.",
        "Select the best answer from the list where needed and update the table.",
        "For each item in the list, do the following if it is not empty: print it.",
        "I paid $60 for the class and $20 for the static lamp.",
        "a < b",
        "x",
    ],
)
def test_prose_is_no_language(text: str) -> None:
    assert languages.detect(text) == ""


def test_detection_keeps_to_its_candidates() -> None:
    assert languages.detect(CLEAN["python"], candidates=("java", "go")) == ""
    assert languages.detect(CLEAN["python"], candidates=("python", "go", "cobol")) == "python"


@pytest.mark.parametrize(
    ("language", "code", "expected"),
    [
        ("python", "@a\n@b(1)\ndef f():\n    def g():\n        pass\n    return g\n", [(0, 6), (3, 5)]),
        ("python", "class A:\n    async def h(self): pass\n", [(1, 2)]),
        ("python", "    def f(self):\n        return 1\n", [(0, 2)]),
        ("c", "static int\nf(void)\n{\n}\nint g() { }\n", [(0, 4), (4, 5)]),
        ("cpp", "template <class T>\nT f() {\n  auto l = []() {};\n}\nA::A() {\n}\n", [(0, 4), (4, 6)]),
        ("csharp", "class A {\n  [X]\n  int F() {\n  }\n  A() {}\n}\n", [(1, 4), (4, 5)]),
        ("java", "class A {\n  @X\n  int f() {\n  }\n  A() {}\n}\n", [(1, 4), (4, 5)]),
        ("java", "  int f() {\n  }\n", [(0, 2)]),
        ("javascript", "const f = (x) => {\n};\nfoo(function () {\n});\n", [(0, 2)]),
        ("javascript", "class A {\n  m() {\n  }\n  p = () => {\n  };\n}\n", [(1, 3), (3, 5)]),
        (
            "javascript",
            "module.exports.q = function () {\n};\nvar o = {\n  r: () => 1,\n};\n",
            [(0, 2), (3, 4)],
        ),
        ("typescript", "class A {\n  @dec()\n  m(): string {\n    return '';\n  }\n}\n", [(1, 5)]),
        ("kotlin", "@A\nfun f() {\n}\nclass B {\n  init { }\n}\n", [(0, 3), (4, 5)]),
        ("swift", "@objc\nfunc f() {\n}\nclass A {\n  init() { }\n}\n", [(0, 3), (4, 5)]),
        ("go", "package a\nfunc f() {\n}\nfunc (a *A) g() {\n}\n", [(1, 3), (3, 5)]),
        ("rust", "#[test]\n#[x]\nfn f() {\n}\nimpl A {\n  fn g() {}\n}\n", [(0, 4), (5, 6)]),
        ("ruby", "class A\n  def f\n  end\n  def self.g\n  end\nend\n", [(1, 3), (3, 5)]),
        ("php", "class A {\n  #[X]\n  function f() {\n  }\n}\nfunction g() { }\n", [(1, 4), (5, 6)]),
        ("bash", "f() {\n  :\n}\nfunction g {\n  :\n}\n", [(0, 3), (3, 6)]),
        ("fortran", CLEAN["fortran"], [(0, 4)]),
        ("css", CLEAN["css"], []),
    ],
)
def test_functions_with_what_leads_them(language: str, code: str, expected: list[tuple[int, int]]) -> None:
    found = languages.functions(code, language)
    assert [(lines.start, lines.stop) for lines in found] == expected


def test_units_take_their_comments_along() -> None:
    code = "import a\n\n# about f\n@x\ndef f():\n    a = 1; b = 2\n    return a  # done\nc = 1\n"
    outer, inner = languages.blocks(code, "python")
    assert [(unit.lines, unit.function) for unit in outer] == [
        (range(0, 1), False),
        (range(2, 7), True),
        (range(7, 8), False),
    ]
    assert [unit.lines for unit in inner] == [range(5, 6), range(6, 7)]


# Odd input: none may crash or hang, and what is told of it stays in bounds. -----------------------------

ODD = {
    "nothing": "",
    "blank": " \n\t\n",
    "nul": "a\0b\n" + "\0" * 5_000,
    "surrogate": "x = '\ud800'\n",
    "byte order mark": "\ufeffx = 1\n",
    "no line feed": "x = 1\ry = 2\r",
    "lost indentation": "(\n" + "if x:\n" * 100,
    "faults in faults": ", try: \n     else: ) return \n try:",
    "unicode": "变量 = '😀'\n" * 50,
    "deep": "(" * 3_000,
    "deep blocks": "{" * 2_000 + "}" * 2_000,
    "deep ifs": "".join(" " * depth + "if x:\n" for depth in range(150)),
    "quotes": '"' * 3_001,
    "one word": "a" * 100_000,
}


@pytest.mark.parametrize("language", languages.GRAMMARS)
def test_odd_input_is_survived(language: str) -> None:
    for name, code in ODD.items():
        share = languages.error_share(code, language)
        assert share is not None, name
        assert 0 <= share <= 1, name
        errors = languages.errors_per_line(code, language) or [0] * (code.count("\n") + 1)
        for line, count in zip(code.split("\n"), errors, strict=True):  # nothing counts twice
            assert 0 <= count <= len(line.encode("utf-8", "replace")) + 2, name
        faults = parsed.faults if (parsed := languages.parsed(code, language)) else []
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(faults)), name
        comments = languages.comment_share(code, language)
        assert comments is not None, name
        assert 0 <= comments <= 1, name
        for lines in languages.functions(code, language):
            assert 0 <= lines.start < lines.stop <= code.count("\n") + 1, name


@pytest.mark.parametrize(
    ("language", "unit"), [("c", "a => "), ("java", "a => "), ("java", "a < "), ("csharp", "A<")]
)
def test_chains_that_would_crash_the_parser_are_not_parsed(language: str, unit: str) -> None:
    assert languages.error_share(unit * 50_000, language) == 1
    assert languages.functions(unit * 50_000, language) == []


def test_long_text_is_not_parsed() -> None:
    code = "x = 1\n" * (languages.MAX_BYTES // 6 + 1)
    assert languages.error_share(code, "python") == 1
    assert languages.errors_per_line(code, "python") is None
    assert languages.detect(code) == ""


def test_a_parse_that_takes_too_long_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "x = 1\n" * 20_000
    assert languages.error_share(code, "python") == 0
    languages.parsed.cache_clear()
    monkeypatch.setattr(languages, "MAX_SECONDS", (0.0, 0.0))
    assert languages.error_share(code, "python") == 1
    languages.parsed.cache_clear()


def test_a_parse_that_takes_too_much_memory_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "y = 1\n" * 20_000
    monkeypatch.setattr(languages, "MAX_GROWTH", -1)
    assert languages.error_share(code, "python") == 1
    languages.parsed.cache_clear()


# What the examples and the data say ---------------------------------------------------------------------


def test_examples_in_docstrings_hold() -> None:
    outcome = doctest.testmod(languages)
    assert (outcome.failed, outcome.attempted > 2) == (0, True)


def test_import_loads_no_grammar() -> None:
    code = (
        "import sys, stages.common.languages; print([n for n in sys.modules if n.startswith('tree_sitter')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_real_code_parses_and_fenced_answers_are_recognised() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA}: not there")
    lines = (DATA / "sven/train.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    pairs = [row for row in map(json.loads, lines) if row["file_name"].endswith(".py")]
    assert pairs
    assert all(languages.error_share(row["func_src_before"], "python") == 0 for row in pairs)

    lines = (DATA / "cybernative/chosen.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    answers = [re.search(r"```(\S*)\n(.*?)```", json.loads(line)["response"], re.DOTALL) for line in lines]
    right = wrong = 0
    for label, code in (answer.groups() for answer in answers if answer):
        language = languages.canonical(label)
        if (languages.error_share(code, language) or 0) < 0.02:
            found = languages.detect(code)
            right += found in (language, {"cpp": "c"}.get(language))
            wrong += found not in (language, {"cpp": "c"}.get(language), "")
    assert right > 100
    assert wrong <= right * 0.02
