import json
import random
from pathlib import Path

import pytest

from stages.common import chunks as module
from stages.common import languages
from stages.common.chunks import chunks

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared/data"
PLENTY = 10**6


def squeezed(text: str) -> str:
    return "".join(text.split())


def body(name: str, lines: int) -> str:
    return f"def {name}(a):\n" + "".join(f"    {name}_{number} = a + {number}\n" for number in range(lines))


def broken(code: str, language: str) -> int:
    return sum(languages.errors_per_line(code, language) or [0])


def stands_in(piece: str, whole: str) -> bool:
    """Whether the piece is a run of whole lines of the text, but for one indentation taken off them all."""
    part, lines = piece.split("\n"), whole.split("\n")
    for start in range(len(lines) - len(part) + 1):
        taken = {
            line[: len(line) - len(kept)]
            for line, kept in zip(lines[start:], part, strict=False)
            if kept.strip() and line.endswith(kept)
        }
        run = lines[start : start + len(part)]
        if len(taken) <= 1 and all(
            line.endswith(kept) for line, kept in zip(run, part, strict=True) if kept.strip() or line.strip()
        ):
            return not "".join(taken).strip()
    return False


def test_a_change_is_widened_to_its_function() -> None:
    vulnerable = "import os\n\n" + body("f", 3) + "\n" + body("g", 3) + "\n" + body("h", 3)
    fixed = vulnerable.replace("g_1 = a + 1", "g_1 = a - 1")
    assert chunks(vulnerable, fixed, "python", 200) == [
        (body("g", 3).strip("\n"), body("g", 3).replace("g_1 = a + 1", "g_1 = a - 1").strip("\n"))
    ]


def test_methods_are_cut_out_of_their_class_with_comment_and_decorator() -> None:
    method = "    # about f\n    @x\n    def f(self):\n        return {}\n"
    vulnerable = "class A:\n    def g(self):\n        return 3\n\n" + method.format(1)
    fixed = vulnerable.replace("return 1", "return 2")
    expected = "# about f\n@x\ndef f(self):\n    return {}"
    assert chunks(vulnerable, fixed, "python", 200) == [(expected.format(1), expected.format(2))]


def test_the_outermost_function_is_taken_unless_it_is_too_long() -> None:
    vulnerable = "def f():\n    a = 0\n    def g():\n        return 1\n    return g\n"
    fixed = vulnerable.replace("return 1", "return 2")
    assert chunks(vulnerable, fixed, "python", 200) == [(vulnerable.strip(), fixed.strip())]
    inner = "def g():\n    return {}\nreturn g"
    assert chunks(vulnerable, fixed, "python", 30) == [(inner.format(1), inner.format(2))]


def test_a_function_that_is_too_long_gives_as_many_statements_as_fit() -> None:
    vulnerable = "int f(int a)\n{\n" + "".join(f"\ta = g{number:03}(a);\n" for number in range(200)) + "}\n"
    fixed = vulnerable.replace("g100(a)", "g100(a + 1)")
    [(before, after)] = chunks(vulnerable, fixed, "c", 100)
    assert before.split("\n") == [f"a = g{number:03}(a);" for number in range(97, 104)]
    assert after == before.replace("g100(a)", "g100(a + 1)")


def test_statements_are_taken_from_the_block_around_the_change() -> None:
    filler = "".join(f"    a{number}();\n" for number in range(20))
    vulnerable = f"void f() {{\n{filler}    if (x) {{\n        y = 1;\n        z(y);\n    }}\n{filler}}}\n"
    fixed = vulnerable.replace("y = 1;", "y = 2;")
    block = "if (x) {{\n    y = {};\n    z(y);\n}}"
    assert (block.format(1), block.format(2)) in [
        (before[before.index("if") : before.index("}") + 1], after[after.index("if") : after.index("}") + 1])
        for before, after in chunks(vulnerable, fixed, "c", 80)
    ]
    assert chunks(vulnerable, fixed, "c", 15) == [("y = 1;\nz(y);", "y = 2;\nz(y);")]
    assert chunks(vulnerable, fixed, "c", 5) == []


def test_changes_outside_functions_are_whole_statements() -> None:
    vulnerable = "import os\nX = [\n    1,\n    2,\n]\n" + body("f", 3)
    fixed = vulnerable.replace("    2,", "    3,")
    assert chunks(vulnerable, fixed, "python", 60) == [
        ("X = [\n    1,\n    2,\n]", "X = [\n    1,\n    3,\n]")
    ]


def test_something_new_comes_with_a_neighbour() -> None:
    vulnerable = body("f", 2) + "\n" + body("h", 2)
    fixed = body("f", 2) + "\n" + body("g", 2) + "\n" + body("h", 2)
    [(before, after)] = chunks(vulnerable, fixed, "python", 300)
    assert before in (body("f", 2).strip(), body("h", 2).strip())
    assert squeezed(before) in squeezed(after)
    assert squeezed(body("g", 2)) in squeezed(after)
    assert [pair[::-1] for pair in chunks(fixed, vulnerable, "python", 300)] == [(before, after)]


@pytest.mark.parametrize("new", [0, 1, 2])
def test_something_new_at_an_end_comes_with_its_only_neighbour(new: int) -> None:
    parts = [body("f", 2), body("g", 2), body("h", 2)]
    fixed = "\n".join(parts)
    parts.pop(new)
    [(before, after)] = chunks("\n".join(parts), fixed, "python", 90)
    assert before in [part.strip() for part in parts]
    assert len(after) == 2 * len(before) + 2
    assert chunks("\n".join(parts), fixed, "python", 60) == []


def test_later_changes_get_their_own_surroundings() -> None:
    vulnerable = "int f(int a)\n{\n" + "".join(f"\ta = g{number:03}(a);\n" for number in range(200)) + "}\n"
    fixed = vulnerable.replace("g100(a)", "g100(b)").replace("g104(a)", "g104(b)")
    found = chunks(vulnerable, fixed, "c", 100)
    assert [[line[5:8] for line in before.split("\n")] for before, _ in found] == [
        [f"{number:03}" for number in range(97, 104)],
        [f"{number:03}" for number in range(104, 111)],
    ]


def test_a_run_that_does_not_parse_alone_is_left_out() -> None:
    vulnerable = "foo(function () { a();\n  b();\n});\n"
    fixed = vulnerable.replace("a()", "c()")
    assert chunks(vulnerable, fixed, "javascript", 40) == [(vulnerable.strip(), fixed.strip())]
    assert chunks(vulnerable, fixed, "javascript", 25) == []


def test_lines_that_only_moved_past_blank_ones_are_left_out() -> None:
    vulnerable = "def f():\n    h = 1\n\n    s = 2\n    return s\n\n\n" + body("g", 2)
    fixed = vulnerable.replace("\n\n    s = 2\n", "\n    s = 2\n\n").replace("g_1 =", "g_2 =")
    assert [before for before, _ in chunks(vulnerable, fixed, "python", 100)] == [body("g", 2).strip()]


def test_what_overlaps_is_one_chunk() -> None:
    long = f"    g({'1, ' * 20}1);\n"
    vulnerable = f"void f()\n{{\n{long}    a = 1;\n    b();\n{long}}}\n"
    fixed = vulnerable.replace("a = 1;", "a = 2;").replace("    b();\n", "    b();\n    c();\n")
    assert chunks(vulnerable, fixed, "c", 25) == [("a = 1;\nb();", "a = 2;\nb();\nc();")]


def test_a_function_moved_into_two_keeps_both_sides_whole() -> None:
    vulnerable = "int f(int a)\n{\n\tint b = a;\n\treturn b + 1;\n}\n\nint z(void)\n{\n\treturn 0;\n}\n"
    fixed = vulnerable.replace("\tint b = a;\n", "\tint b = g(a);\n\treturn b;\n}\n\nint g(int b)\n{\n")
    for before, after in chunks(vulnerable, fixed, "c", 200):
        assert broken(before, "c") == broken(after, "c") == 0
        assert "int f" in before and "int f" in after and "int g" in after


def test_chunks_come_in_the_order_of_the_file() -> None:
    vulnerable = "\n".join(body(name, 3) for name in "abcdefgh")
    fixed = (
        vulnerable.replace("b_1 = a", "b_1 = b").replace("e_0 = a", "e_0 = b").replace("h_2 = a", "h_2 = b")
    )
    found = chunks(vulnerable, fixed, "python", 200)
    assert [before[4] for before, _ in found] == ["b", "e", "h"]


@pytest.mark.parametrize(
    ("vulnerable", "fixed"),
    [
        ("", ""),
        ("a = 1\n", "a = 1\n"),
        ("a = 1\n", "a  =  1"),
        ("a = 1\r\n", "a = 1\n"),
        ("if a:\n    b = 1\n", "if a:\n        b = 1\n"),
    ],
)
def test_white_space_is_no_difference(vulnerable: str, fixed: str) -> None:
    assert chunks(vulnerable, fixed, "python", 100) == []


def test_changes_of_white_space_give_no_chunk_beside_another() -> None:
    vulnerable = body("f", 3) + "\n" + body("g", 3)
    fixed = vulnerable.replace("f_1 = a", "f_1  =  a").replace("g_1 = a", "g_1 = b")
    assert [before for before, _ in chunks(vulnerable, fixed, "python", 200)] == [body("g", 3).strip()]


def test_pairs_that_fit_and_pairs_with_an_empty_side_work() -> None:
    assert chunks("a = 1\n", "a = 2\n", "python", 100) == [("a = 1", "a = 2")]
    assert chunks("", "a = 2\n", "python", 100) == [("", "a = 2")]
    assert chunks("a = 1", "\n \n", "python", 100) == [("a = 1", "")]
    assert chunks("a = 1\n", "a = 2\n", "python", 0) == []


def test_without_a_grammar_only_a_whole_pair_fits() -> None:
    for language in ("", "cobol"):
        assert chunks("  one\n  two\n", "  one\n  three\n", language, 100) == [("one\ntwo", "one\nthree")]
        assert chunks("one\ntwo\n", "one\nthree\n", language, 8) == []


def test_a_rewrite_gives_nothing() -> None:
    vulnerable = "".join(f"a{number} = 1\n" for number in range(module.MAX_CHANGED + 1))
    assert chunks(vulnerable, vulnerable.replace("= 1", "= 2"), "python", PLENTY) == []
    vulnerable = "".join(f"a{number} = 1\n" for number in range(module.MAX_CHANGED))
    assert len(chunks(vulnerable, vulnerable.replace("= 1", "= 2"), "python", PLENTY)) == 1


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("abc", "abc", []),
        ("abc", "axc", [(1, 2, 1, 2)]),
        ("abc", "ac", [(1, 2, 1, 1)]),
        ("ac", "abc", [(1, 1, 1, 2)]),
        ("", "ab", [(0, 0, 0, 2)]),
        ("abcde", "xbcdy", [(0, 1, 0, 1), (4, 5, 4, 5)]),
    ],
)
def test_changes_are_found(before: str, after: str, expected: list[tuple[int, ...]]) -> None:
    found = module._changes(list(before), list(after))
    assert found == [module.Region(*each) for each in expected]


def test_changes_far_apart_are_two() -> None:
    before = [str(number) if number % 3 else "}" for number in range(2_000)]
    after = ["x", *before[1:1_500], "y", *before[1_500:]]
    assert module._changes(before, after) == [
        module.Region(0, 1, 0, 1),
        module.Region(1_500, 1_500, 1_500, 1_501),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_changes_turn_one_side_into_the_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(module, "_MAX_CELLS", draw.choice((4, 100, 40_000)))
    before = [str(draw.randrange(draw.choice((5, 500)))) for _ in range(300)]
    after = [line for line in before if draw.random() > 0.1]
    for _ in range(20):
        after.insert(draw.randrange(len(after)), str(draw.randrange(500)))
    rebuilt, at = [], 0
    for change in module._changes(before, after):
        assert at < change.v0 or not at  # a line is shared between two changes
        rebuilt += before[at : change.v0] + after[change.f0 : change.f1]
        at = change.v1
    assert rebuilt + before[at:] == after


# Properties, on programs drawn at random -----------------------------------------------------------------


def python(draw: random.Random) -> str:
    def block(depth: int) -> list[str]:
        lines: list[str] = []
        for _ in range(draw.randrange(1, 5)):
            kind = draw.randrange(7)
            pad = " " * 4 * depth
            if kind < 2 and depth < 4:
                heads = (f"def f{draw.randrange(9)}(a):", "if a:", "while b:", "class A:", "with c as d:")
                lines += [pad + draw.choice(heads), *block(depth + 1)]
            elif kind == 2:
                lines += ["", f"{pad}# remark {draw.randrange(9)}"]
            lines.append(f"{pad}x{draw.randrange(9)} = {draw.randrange(99)}")
        return lines

    return "\n".join(line for _ in range(6) for line in block(0)) + draw.choice(("", "\n"))


def curly(draw: random.Random) -> str:
    def block(depth: int) -> list[str]:
        pad, lines = "\t" * depth, []
        for _ in range(draw.randrange(1, 5)):
            if draw.random() < 0.3 and depth < 4:
                head, end = draw.choice((("if (a) {", "}"), ("do {", "} while (b);"), ("for (;;) {", "}")))
                lines += [pad + head, *block(depth + 1), pad + end]
            lines.append(f"{pad}x{draw.randrange(9)} = {draw.randrange(99)};")
        return lines

    functions = ([f"int f{number}(int a)", "{", *block(1), "}", ""] for number in range(6))
    return "\n".join(line for function in functions for line in function)


def changed(code: str, draw: random.Random) -> str:
    lines = code.split("\n")
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(lines))
        if "= " in lines[at]:
            lines[at] = lines[at].replace("= ", f"= {draw.randrange(100, 999)} + ")
            if draw.random() < 0.3:
                lines.insert(at, lines[at].replace("x", "y"))
    return "\n".join(lines)


@pytest.mark.parametrize("limit", [60, 150, 400, PLENTY])
@pytest.mark.parametrize(("language", "program"), [("python", python), ("c", curly), ("javascript", curly)])
def test_every_chunk_keeps_its_promises(language: str, program: object, limit: int) -> None:
    for seed in range(30):
        draw = random.Random(seed)
        vulnerable = program(draw)  # type: ignore[operator]
        if language == "javascript":
            vulnerable = vulnerable.replace("int f", "function f").replace("(int a)", "(a)")
        fixed = changed(vulnerable, draw)
        found = chunks(vulnerable, fixed, language, limit)
        assert found == chunks(vulnerable, fixed, language, limit)
        for before, after in found:
            assert squeezed(before) != squeezed(after)
            assert max(len(before), len(after)) <= limit
            assert before and after
            assert stands_in(before, vulnerable) and stands_in(after, fixed)
            assert broken(before, language) <= broken(vulnerable, language)
            assert broken(after, language) <= broken(fixed, language)
        for side, whole in enumerate((vulnerable, fixed)):  # no line stands in two chunks
            assert sum(pair[side].count("\n") + 1 for pair in found) <= whole.count("\n") + 1
        if limit == PLENTY:
            kept = {squeezed(line) for before, _ in found for line in before.split("\n")}
            assert {squeezed(line) for line in vulnerable.split("\n")} - {
                squeezed(line) for line in fixed.split("\n")
            } <= kept
            kept = {squeezed(line) for _, after in found for line in after.split("\n")}
            assert {squeezed(line) for line in fixed.split("\n")} - {
                squeezed(line) for line in vulnerable.split("\n")
            } <= kept


@pytest.mark.parametrize(
    "odd",
    [
        *(
            "\0",
            "\ud800",
            "\ufeff",
            "a\rb",
            "é\u2028ü",
            "((((" * 500,
            "}" * 500,
            '"""',
            "\t\t  \t",
            "a" * 50_000,
        ),
        *("a => " * 5_000, "<" * 5_000, "\r\n" * 500, "if x:\n" * 300, "#if\n" * 300),
    ],
)
@pytest.mark.parametrize("language", ["python", "c", "java", "html", ""])
def test_odd_pairs_are_survived(language: str, odd: str) -> None:
    code = "def f():\n    return 1\n"
    for pair in ((odd, code), (code, odd), (odd + "\nx = 1\n", odd + "\nx = 2\n"), (code + odd, odd + code)):
        for before, after in chunks(*pair, language, 200):
            assert squeezed(before) != squeezed(after)
            assert max(len(before), len(after)) <= 200


def test_line_ends_are_kept_and_do_not_hide_the_change() -> None:
    vulnerable = (body("f", 3) + "\n" + body("g", 3)).replace("\n", "\r\n")
    fixed = (body("f", 3) + "\n" + body("g", 3).replace("a + 1", "b + 1")).rstrip()
    [(before, after)] = chunks(vulnerable, fixed, "python", 200)
    assert before == body("g", 3).strip().replace("\n", "\r\n") + "\r"
    assert after == body("g", 3).strip().replace("a + 1", "b + 1")


def test_long_real_pairs_are_cut() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA}: not there")
    rows = [json.loads(line) for line in (DATA / "sven/train.jsonl").read_text("utf-8").splitlines()[:250]]
    suffixes = {"py": "python", "c": "c", "cpp": "cpp", "cc": "cpp", "h": "c"}
    cut = 0
    for row in rows:
        vulnerable, fixed = row["func_src_before"], row["func_src_after"]
        if max(len(vulnerable), len(fixed)) > 2_000 and squeezed(vulnerable) != squeezed(fixed):
            language = suffixes[row["file_name"].rsplit(".", 1)[1]]
            found = chunks(vulnerable, fixed, language, 2_000)
            assert found, row["commit_link"]
            assert all(max(map(len, pair)) <= 2_000 for pair in found)
            cut += 1
    assert cut > 30
