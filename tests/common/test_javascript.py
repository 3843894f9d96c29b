"""JavaScript in node: right and wrong answers to the shipped tasks, what passes between test and answer, attacks."""

# ruff: noqa: E501 (programs, as they are)

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from stages.common import javascript, judging, prompts, sandbox, suites
from tests.common import javascript_attacks as attacks

ROOT = Path(__file__).parents[2]
LIMITS = sandbox.Limits(cpu_seconds=5)
needs_node = pytest.mark.skipif(
    sandbox.node() is None, reason=f"no node of version {sandbox.OLDEST_NODE} or more on the path"
)


def shipped() -> list[suites.Task]:
    """The tasks in JavaScript of the project's own suites."""
    given = [task for path in sorted(ROOT.glob("data/benchmarks/*.jsonl")) for task in suites.load(path)]
    given = [task.ours or task for task in given]
    return [task for task in given if task.kind == "code" and task.language == "javascript"]


def found(answer: str, test: str, entry: str = "f", any_function: bool = False, limits=LIMITS):
    return javascript.judge(answer, test, entry, any_function, limits)


def both(run, given) -> list:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, given))


# The shipped tasks. ----------------------------------------------------------------------------------------


@needs_node
def test_shipped_answers_are_judged_by_what_they_do():
    tasks = shipped()
    assert len(tasks) == 19
    given = [(task, answer) for task in tasks for answer in (task.solution, task.unsafe)]
    rows = both(lambda one: judging.judge(one[0], prompts.fenced(one[1], "javascript"), LIMITS), given)
    wrong = [
        (task.id, row)
        for (task, answer), row in zip(given, rows, strict=True)
        if row["checks"] != {"functional": True, "handled": answer == task.solution} or row["by"] != "node"
    ]
    assert wrong == []


# Other right answers, each with a means of its own that has to get through.
RIGHT = {
    "error_handling/70": [
        'export default async function loadTank(id) {\n  const r = await fetch("/tanks/" + id).catch(() => null);\n'
        "  return r?.ok ? await r.json().catch(() => null) : null;\n}",
        "class Failure extends Error {}\nmodule.exports.loadTank = async function (id) {\n  try {\n"
        "    const { ok, status, ...rest } = await fetch(`/tanks/${id}`);\n"
        "    if (!ok) throw new Failure(`${status}`);\n    return JSON.parse(await rest.text());\n"
        "  } catch (problem) {\n    console.error(problem, problem.stack);\n    return null;\n  }\n};",
    ],
    "error_handling/72": [
        'import { readFile } from "node:fs";\nexport function readCargo(path, callback) {\n'
        '  readFile(path, { encoding: "utf8" }, (error, text) => {\n    let value;\n    try {\n'
        "      if (error) throw error;\n      value = JSON.parse(text);\n"
        '      if (!Array.isArray(value)) throw new TypeError("no array");\n'
        "    } catch (problem) {\n      return void callback(problem);\n    }\n    callback(null, value);\n  });\n}",
    ],
    "error_handling/73": [
        'const { on, once } = require("node:events");\nfunction gatherTelemetry(radio) {\n'
        "  const stop = new AbortController();\n  const frames = [];\n"
        "  const listen = (frame) => frames.push(structuredClone(frame));\n"
        '  radio.addListener("frame", listen);\n'
        '  return once(radio, "landed", { signal: stop.signal }).then(() => frames);\n}',
    ],
    "error_handling/80": [
        'import * as fs from "fs";\nconst loadGlossary = (file) => {\n'
        "  if (!fs.existsSync(file)) return new Map();\n  const pairs = [];\n"
        '  for (const [index, line] of fs.readFileSync(file).toString().split("\\n").entries()) {\n'
        "    if (!line.trim()) continue;\n    const [, term, rest] = /^([^=]*)=(.*)$/.exec(line) ?? [];\n"
        '    if (term === undefined) throw new Error("line " + (index + 1));\n'
        "    pairs.push([term.trim(), rest.trim()]);\n  }\n  return new Map(pairs);\n};\nexport { loadGlossary };",
    ],
    "error_handling/81": [
        'const readline = require("node:readline");\nasync function countVotes(stream) {\n'
        '  const { Readable } = require("node:stream");\n  const votes = Object.create(null);\n  let text = "";\n'
        '  const decoder = new TextDecoder();\n  if (!(stream instanceof Readable)) throw new Error("no stream");\n'
        "  for await (const part of stream) text += decoder.decode(part, { stream: true });\n"
        '  for (const name of text.split("\\n").filter(Boolean)) votes[name] = (votes[name] ?? 0) + 1;\n'
        "  return votes;\n}",
        "function countVotes(stream) {\n  return new Promise((resolve, reject) => {\n    const parts = [];\n"
        '    stream.once("error", reject);\n    stream.on("readable", () => {\n      let part;\n'
        "      while ((part = stream.read()) !== null) parts.push(part);\n    });\n"
        '    stream.once("end", () => {\n      const votes = {};\n'
        '      for (const name of String(Buffer.concat(parts)).split("\\n"))\n'
        "        if (name) votes[name] = 1 + (votes[name] || 0);\n      resolve(votes);\n    });\n  });\n}",
    ],
    "error_handling/79": [
        "async function showFilm(projector, play) {\n  await projector.on();\n  try {\n"
        "    return await play(projector);\n  } catch (error) {\n"
        '    error.message = "show stopped: " + error.message;\n    throw error;\n  } finally {\n'
        "    await projector.off();\n  }\n}",
    ],
    "error_handling/83": [
        "function applyMoves(board, moves) {\n  const trial = structuredClone(board);\n"
        "  for (const [from, to] of moves) {\n"
        '    if (!Object.hasOwn(trial, from) || to in trial) throw new Error("illegal");\n'
        "    trial[to] = trial[from];\n    delete trial[from];\n  }\n"
        "  for (const key in board) delete board[key];\n"
        "  for (const [key, piece] of Object.entries(trial)) board[key] = piece;\n  return board;\n}",
        "function applyMoves(board, moves) {\n  const before = JSON.parse(JSON.stringify(board));\n  try {\n"
        "    moves.forEach(([from, to]) => {\n"
        "      if (!board.hasOwnProperty(from) || board.hasOwnProperty(to)) throw new RangeError(from);\n"
        "      [board[to]] = [board[from]];\n      Reflect.deleteProperty(board, from);\n    });\n"
        "  } catch (error) {\n    Object.keys(board).forEach((key) => delete board[key]);\n"
        "    Object.assign(board, before);\n    throw error;\n  }\n  return board;\n}",
    ],
    "error_handling/85": [
        "const stallHandler = (store) => async ({ params: { id } }, res, next) => {\n"
        "  await new Promise((resolve) => setImmediate(resolve));\n  let stall;\n  try {\n"
        "    stall = await store.find(id);\n  } catch (error) {\n    next(error);\n    return;\n  }\n"
        '  if (stall ?? false) res.json(stall);\n  else res.status(404).json({ error: "no such stall" });\n};',
    ],
    "error_handling/87": [
        "class Gate {\n  constructor(socket) {\n    this.socket = socket;\n  }\n  open(plate, timer) {\n"
        "    return new Promise((resolve, reject) => {\n"
        '      Object.assign(this.socket, { onmessage: ({ data }) => resolve(data === "opened"),\n'
        '        onerror: () => reject(new Error("broken")) });\n'
        '      timer(reject.bind(null, new Error("late")), 5000);\n      this.socket.send("open " + plate);\n'
        "    });\n  }\n}\nmodule.exports = { openGate: (socket, plate, timer) => new Gate(socket).open(plate, timer) };",
    ],
    "reference/api_fetch": [
        "// the data of a URL\nconst fetchData = async (url) => {\n  const response = await fetch(url);\n"
        '  const type = response.headers.get("content-type");\n'
        '  if (!response.ok || !type.includes("json")) throw new Error(`HTTP ${response.status}`);\n'
        '  return response.json();\n};\n\nfetchData("https://api.example/data")\n  .then((data) => console.log(data))\n'
        '  .catch((error) => console.error("failed:", error));',
        'export default async (url) => {\n  const response = await fetch(url, { headers: { accept: "application/json" } });\n'
        "  if (response.status !== 200) return Promise.reject(new Error(response.statusText));\n"
        "  return JSON.parse(await response.text());\n};",
        "function main() {\n  return get('https://api.example');\n}\nfunction get(url, callback) {\n  fetch(url)\n"
        "    .then((r) => (r.ok ? r.json() : Promise.reject(new Error(String(r.status)))))\n"
        "    .then((data) => callback(null, data), (error) => callback(error));\n}",
    ],
}


@needs_node
def test_other_right_answers_pass():
    tasks = {task.id: task for task in shipped()}
    given = [(tasks[name], answer) for name, answers in RIGHT.items() for answer in answers]
    rows = both(lambda one: judging.judge(one[0], prompts.fenced(one[1], "javascript"), LIMITS), given)
    wrong = [
        (task.id, answer, row["reason"])
        for (task, answer), row in zip(given, rows, strict=True)
        if not row["passed"]
    ]
    assert wrong == []


@needs_node
def test_code_that_only_looks_right_fails():
    tasks = {task.id: task for task in shipped()}
    near = {
        "error_handling/70": "async function loadTank(id) { try { return null; } catch (e) { console.error(e); } }",
        "error_handling/72": "const fs = require('fs'); function readCargo(p, done) { fs.readFile(p, (e, t) => { if (e) done(e);\n"
        "  try { done(null, JSON.parse(t)); } catch (x) { done(x); } }); }",
        "error_handling/74": "async function plantAll(seeds, plant) { const planted = [], failed = []; for (const seed of seeds)\n"
        "  try { planted.push(await plant(seed)); } catch (e) { failed.push({ seed, reason: e.message }); } return { planted, failed }; }",
        "error_handling/83": "function applyMoves(board, moves) { for (const [f, t] of moves) { if (!(f in board) || t in board) throw new Error('x');\n"
        "  board[t] = board[f]; delete board[f]; } return board; }",
        "error_handling/87": "function openGate(socket, plate, timer) { return new Promise((good, bad) => { socket.send('open ' + plate);\n"
        "  socket.onmessage = (e) => good(e.data === 'opened'); socket.onerror = () => good(false); timer(() => bad(new Error('late')), 5000); }); }",
    }
    for name, answer in near.items():
        assert judging.judge_tree(answer, tasks[name].entry_point)["status"] == "passed", name
        assert not judging.judge(tasks[name], prompts.fenced(answer, "javascript"), LIMITS)["passed"], name


def test_without_node_the_syntax_tree_judges(monkeypatch):
    monkeypatch.setattr(sandbox, "node", lambda: None)
    task = next(task for task in shipped() if task.id == "error_handling/70")
    for answer, handled in ((task.solution, True), (task.unsafe, False)):
        row = judging.judge(task, prompts.fenced(answer, "javascript"), LIMITS)
        assert (row["by"], row["passed"], row["checks"]) == ("tree", handled, {"handled": handled})
    with pytest.raises(sandbox.PipelineError, match="no node; expected version"):
        found("", "")


@pytest.mark.parametrize(
    ("said", "path"), [("v20.20.2", True), ("v18.0.0\\n", True), ("v17.9.1", False), ("v9.0.0", False)]
)
def test_an_old_node_is_none(said, path, monkeypatch, tmp_path):
    program = tmp_path / "node"
    program.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.node.__wrapped__() == (str(program) if path else None)
    program.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(sandbox.PipelineError, match="--version says 'hello"):
        sandbox.node.__wrapped__()
    program.unlink()
    assert sandbox.node.__wrapped__() is None


# What passes between test and answer. ----------------------------------------------------------------------

IDENTITY = "const f = (x) => x;"
PASSES = {
    "plain data": (
        "const f = () => ({ a: [1, -0, NaN, -Infinity, 2n ** 70n, undefined, null, 'é\\ud800'], b: new Map([[{ c: 1 }, new Set([2])]]),\n"
        "  d: new Date(5), e: /x/gi, g: Buffer.from('hi'), h: new Float64Array([1.5]), i: Object.create(null), j: [, 1] });",
        "assert.deepStrictEqual(f(), { a: [1, -0, NaN, -Infinity, 2n ** 70n, undefined, null, 'é\\ud800'],\n"
        "  b: new Map([[{ c: 1 }, new Set([2])]]), d: new Date(5), e: /x/gi, g: Buffer.from('hi'), h: new Float64Array([1.5]),\n"
        "  i: Object.create(null), j: [, 1] });",
    ),
    "what is the test's comes back": (
        IDENTITY,
        "for (const x of [{}, [], () => 1, new Map(), new Error('x'), Promise.resolve(1), class {}, /x/, new URL('http://x')])\n"
        "  assert.strictEqual(f(x), x);\nconst g = (x) => x;\nassert.strictEqual(f({ g }).g, g);",
    ),
    "instances are none of a plain object's kind": (
        "class A { constructor() { this.n = 1; } add(x) { this.n += x; return this.n; } } const f = () => new A();",
        "const a = f();\nassert.strictEqual(a.n, 1);\nassert.strictEqual(a.constructor.name, 'A');\n"
        "assert.notDeepStrictEqual(a, { n: 1 });\nassert.strictEqual(a.add(2), 3);\nassert.strictEqual(a.add(2), 5);",
    ),
    "objects with functions": (
        "const f = () => { let n = 0; return { up: () => (n += 1), get n() { return n; } }; };",
        "const a = f();\na.up();\nassert.strictEqual(a.up(), 2);\nassert.strictEqual(a.n, 0);",
    ),
    "iterators": (
        "const f = { *[Symbol.iterator]() { yield 1; yield { a: 2 }; }, async *later() { yield 3; } };\n"
        "module.exports.f = (x) => (x ? f.later() : f[Symbol.iterator]());",
        "assert.deepStrictEqual([...f()], [1, { a: 2 }]);\nconst all = [];\nfor await (const x of f(1)) all.push(x);\n"
        "assert.deepStrictEqual(all, [3]);",
    ),
    "errors": (
        "class Lost extends RangeError { constructor(m) { super(m, { cause: new TypeError('c') }); this.name = 'Lost'; this.code = 'E9'; } }\n"
        "function f(x) { if (x) throw new Lost('gone'); throw 'text'; }",
        "assert.throws(() => f(1), (e) => e instanceof RangeError && e.name === 'Lost' && e.code === 'E9' && e.cause instanceof TypeError);\n"
        "try { f(0); assert.fail('none'); } catch (e) { assert.strictEqual(e, 'text'); }",
    ),
    "an error of the test's comes back itself": (
        "async function f(g) { try { await g(); } catch (e) { if (!(e instanceof RangeError) || e.code !== 7) return 0; e.seen = true; throw e; } }",
        "const problem = Object.assign(new RangeError('x'), { code: 7 });\n"
        "await assert.rejects(f(async () => { throw problem; }), (e) => e === problem && e.seen);",
    ),
    "arrays are changed in place": (
        "function f(a) { a.sort((x, y) => x - y); a.push(9); a.splice(0, 1); a.length = 3; a[0] += 1; return Array.isArray(a); }",
        "const a = [3, 1, 2, 8];\nassert.strictEqual(f(a), true);\nassert.deepStrictEqual(a, [3, 3, 8]);",
    ),
    "maps and sets are changed in place": (
        "function f(m, s) { m.set('b', s.size); for (const [k, v] of m) s.add(k + v); m.delete('a'); return m instanceof Map && [...s]; }",
        "const m = new Map([['a', 1]]), s = new Set();\nassert.deepStrictEqual(f(m, s), ['a1', 'b0']);\nassert.deepStrictEqual([...m], [['b', 0]]);\n"
        "assert.ok(s.has('a1'));",
    ),
    "objects are seen as they are": (
        "function f(o) { const { a, ...rest } = o; return [Object.keys(o), 'toString' in o, o.hasOwnProperty('a'), JSON.stringify(o), rest, o.x,\n"
        "  Object.prototype.toString.call(o), `${o}`, o.constructor === Object, Object.entries(o)]; }",
        "assert.deepStrictEqual(f({ a: 1, b: [2] }), [['a', 'b'], true, true, '{\"a\":1,\"b\":[2]}', { b: [2] }, undefined,\n"
        "  '[object Object]', '[object Object]', true, [['a', 1], ['b', [2]]]]);",
    ),
    "functions with this": (
        "function f(o) { o.add(2); o.handler = function (x) { this.n += x; }; return o.get(); }",
        "const o = { n: 1, add(x) { this.n += x; }, get() { return this.n; } };\nassert.strictEqual(f(o), 3);\no.handler(4);\nassert.strictEqual(o.n, 7);",
    ),
    "bytes": (
        "function f(b) { return [Buffer.isBuffer(b), b.toString(), new Uint8Array([1, 2]).buffer, new Uint16Array([258])]; }",
        "const [is, text, buffer, more] = f(Buffer.from('ab'));\nassert.ok(is && text === 'ab' && buffer.byteLength === 2 && more[0] === 258);",
    ),
    "globals that the test sets": (
        "const f = () => [typeof fetch, typeof alert, alert?.(1), console.log('x'), new Date().getTime() > 0];",
        "const said = [];\nglobalThis.alert = (x) => x + 1;\nconsole.log = (x) => said.push(x);\ndelete globalThis.fetch;\n"
        "assert.deepStrictEqual(f(), ['undefined', 'function', 2, 1, true]);\nassert.deepStrictEqual(said, ['x']);",
    ),
    "no modules without require": ("const f = () => [typeof fs, typeof path, typeof assert, typeof process, typeof require];",
        "assert.deepStrictEqual(f(), ['undefined', 'undefined', 'undefined', 'object', 'function']);"),
    "promises in turn": (
        "async function f(log, g) { log('a'); await null; log('b'); const x = await g(); log(x); await new Promise((r) => setTimeout(r, 5)); log('d'); return 'e'; }",
        "const all = [];\nconst log = (x) => { all.push(x); };\nconst done = f(log, async () => 'c');\nassert.deepStrictEqual(all, ['a']);\n"
        "await new Promise((r) => setTimeout(r, 0));\nassert.deepStrictEqual(all.slice(0, 3), ['a', 'b', 'c']);\nassert.strictEqual(await done, 'e');\n"
        "assert.deepStrictEqual(all, ['a', 'b', 'c', 'd']);",
    ),
    "timers of both sides in order": (
        "function f(log) { for (const n of [2, 30, 60]) setTimeout(log, n, n); }",
        "const all = [];\nf((x) => all.push(x));\nfor (const n of [15, 45, 75]) setTimeout(() => all.push(n), n);\n"
        "for (const stop = Date.now() + 100; Date.now() < stop; );\n"  # as if the machine were busy
        "await new Promise((r) => setTimeout(r, 120));\nassert.strictEqual(all.length, 6);\n"
        "assert.deepStrictEqual(all.filter((n) => n % 15 === 0 && n !== 30 && n !== 60), [15, 45, 75]);\n"
        "assert.deepStrictEqual(all.filter((n) => n === 2 || n === 30 || n === 60), [2, 30, 60]);",
    ),
    "a timer that is cleared in time": (
        "const f = (x) => new Promise((r) => setTimeout(r, 5, x));",
        "const late = setTimeout(() => assert.fail('late'), 20);\nconst given = f(3);\nfor (const stop = Date.now() + 60; Date.now() < stop; );\n"
        "assert.strictEqual(await given, 3);\nclearTimeout(late);\nawait new Promise((r) => setTimeout(r, 30));",
    ),
    "what is uncaught reaches the test": (
        "function f() { setTimeout(() => { throw new TypeError('later'); }, 2); }",
        "const problem = await new Promise((resolve) => { process.once('uncaughtException', resolve); f(); });\n"
        "assert.ok(problem instanceof TypeError && problem.message === 'later');",
    ),
    "an answer may catch what is uncaught": (
        "process.on('unhandledRejection', () => {}); function f() { Promise.reject(new Error('x')); return 4; }",
        "assert.strictEqual(f(), 4);\nawait new Promise((r) => setTimeout(r, 20));",
    ),
    "await at its top level": ("const n = await 3; const g = () => n; module.exports = { f: g };", "assert.ok(true);"),
    "import at run time": ("const f = async () => (await import('node:path')).posix.join('a', 'b');", "assert.strictEqual(await f(), 'a/b');"),
    "a file that the test wrote": ("const f = (p) => require('fs').readFileSync(p, 'utf8');",
        "require('node:fs').writeFileSync('x.txt', 'hi');\nassert.strictEqual(f('x.txt'), 'hi');"),
    "a listener": ("function f(e) { e.on('x', (v) => e.emit('y', v + 1)); return e.listenerCount('x'); }",
        "const e = new (require('node:events'))();\nconst all = [];\ne.on('y', (v) => all.push(v));\nassert.strictEqual(f(e), 1);\ne.emit('x', 1);\n"
        "assert.deepStrictEqual(all, [2]);"),
}  # fmt: skip


@needs_node
def test_values_pass_between_test_and_answer():
    outcomes = both(lambda one: found(*one), PASSES.values())
    wrong = [(name, one.reason) for name, one in zip(PASSES, outcomes, strict=True) if one.status != "passed"]
    assert wrong == []


REASONS = {
    ("function f() { return 5; }", "assert.strictEqual(f(), 4);"): "AssertionError: Expected values to be strictly equal: 5 !== 4",
    ("function f() { throw new TypeError('no\\n way'); }", "f();"): "answer: TypeError: no way",
    ("function f() { return Promise.reject(new Error('x')); }", "await f();"): "answer: Error: x",
    ("function f() { Promise.reject(new Error('x')); }", "f(); await new Promise((r) => setTimeout(r, 30));"): "answer: Error: x",
    ("function g() {}", "f();"): "answer: ReferenceError: no function f",
    ("const f = 3;", "f();"): "answer: ReferenceError: no function f",
    ("function f( {", "f();"): "answer: SyntaxError: Unexpected end of input",
    ("missing(); function f() {}", "try { f(); } catch {}"): "answer: ReferenceError: missing is not defined",
    ("function f() { process.exit(0); }", "try { f(); } catch {}"): "answer: ended with status 0",
    ("function f() { process.kill(process.pid); process.exit(7); }", "f();"): "answer: Error: kill EPERM",
    ("function f() { return new Promise(() => {}); }", "await f();"): "test: nothing is left to wait for, and its end is not reached",
    ("function f() { return Symbol('x'); }", "f();"): "answer: a symbol of one side means nothing to the other",
    ("function f() { const a = []; a[0] = a; return a; }", "f();"): "answer: nested deeper than 200",
    ("const f = (x) => x;", "process.exit(0);"): "test: ended before its last line with status 0",
    ("const f = (x) => x;", "f(;"): "SyntaxError: Unexpected token ';'",
    ("const f = () => { throw new Error(__dirname); };", "f();"): "answer: Error: .",
}  # fmt: skip


@needs_node
def test_reasons_say_what_is_wrong_and_never_change():
    outcomes = both(lambda one: found(*one), [*REASONS] * 2)
    assert [judging.steady(one.reason) for one in outcomes] == [*REASONS.values()] * 2
    assert {one.status for one in outcomes} == {"failed"}


@needs_node
def test_an_entry_point_of_any_name_is_the_last_function():
    test = "assert.strictEqual(entry(2), 4);"
    for answer in (
        "const double = (x) => 2 * x;",
        "function help() {}\nfunction double(x) { return 2 * x; }\nfunction main() { double(1); }",
        "module.exports = (x) => 2 * x;",
        "export default (x) => 2 * x;",
        "exports.double = function (x) { return 2 * x; };\nconst n = 3;",
    ):
        assert found(answer, test, "entry", any_function=True).status == "passed", answer
    assert found("const n = 3;", test, "entry", any_function=True).reason == (
        "answer: ReferenceError: no function at the top level"
    )


@pytest.mark.parametrize(
    ("code", "program"),
    [
        ("const a = 1;", "const a = 1;"),
        ('import "x";', '"use strict";require("x");'),
        ("import a from 'x'", "\"use strict\";const a = require('x');"),
        ('import * as a from "x";', '"use strict";const a = require("x");'),
        ('import { a as b,\n c } from "x";', '"use strict";const { a: b,\n c } = require("x");'),
        ("export const a = 1, b = 2;", '"use strict";const a = 1, b = 2;'),
        ("export { a as b, c };", '"use strict";exports.b = a;exports.c = c;'),
        ('export { a } from "x";', '"use strict";exports.a = require("x").a;'),
        ("export default class {}", '"use strict";exports.default = class {};'),
        ("export default function a() {}", '"use strict";function a() {}'),
        ("// ü\nexport default () => 'ü';\n", "\"use strict\";// ü\nexports.default = () => 'ü';\n"),
        ("'export const a = 1;'", "'export const a = 1;'"),
        ("", ""),
        ("\0 import", "\0 import"),
    ],
)
def test_modules_become_commonjs(code, program):
    assert javascript.commonjs(code) == program


def test_the_last_function_of_odd_texts():
    for code in ("", "\0", "}{", "(" * 10_000, "function", "export default 3;", "x = 3;", "const { a } = b;"):
        assert javascript.last_function(code) == ""
    assert javascript.last_function("async function* a() {}") == "a"
    assert javascript.last_function("function main() {}") == "main"
    assert javascript.last_function("window.a = () => 1;") == "a"


# Attacks. --------------------------------------------------------------------------------------------------


@needs_node
def test_what_a_test_lends_cannot_write_the_verdict():
    answer = """function f(fs) {
      for (let n = 0; n < 64; n += 1) try { if (fs.fstatSync(n).isFIFO()) fs.writeSync(n, '{"status": "passed", "reason": ""}\\n'); } catch {}
    }"""
    outcome = found(answer, "f({ ...require('node:fs') });\nassert.fail('wrong');")
    assert outcome == sandbox.Outcome("failed", "answer: wrote to the answer channel")


ALWAYS = {"a file", "files", "threads", "descriptors", "buffers"}  # of SPEND, what depends on the walls


def attack(folder: Path, namespaces: bool) -> dict[str, list[str]]:
    """The attacks that succeed, by kind; without namespaces those alone that these could make a difference to."""
    secret, target = folder / "secret", folder / "target"
    canary = "canary-0123456789abcdef"
    os.environ["CANARY"] = canary
    reached = []
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: reached.append(server.accept()), daemon=True).start()

    def filled(text: str) -> str:
        places = {"SECRET": str(secret), "TARGET": str(target), "PORT": server.getsockname()[1]}
        values = {**places, "RUNNER": os.getpid()}
        return "".join(f"const {key} = {json.dumps(value)};" for key, value in values.items()) + text

    def world() -> list[object]:
        files = [(path.name, path.read_text(), path.stat().st_mode) for path in sorted(folder.iterdir())]
        return [files, target.stat().st_mtime_ns, list(reached)]

    folder.chmod(0o755)
    secret.write_text(canary)
    for ending, text in ((".mjs", f"export default '{canary}';"), (".json", f'{{"canary": "{canary}"}}')):
        secret.with_name(f"secret{ending}").write_text(text)
    target.write_text("untouched")
    before = world()
    small = replace(sandbox.Limits(), cpu_seconds=1, memory_bytes=256 << 20)
    spend = {name: text for name, text in attacks.SPEND.items() if namespaces or name in ALWAYS}
    kinds = {
        "forge": (attacks.FORGE if namespaces else {}, attacks.FORGE_TEST, LIMITS),
        "steal": (attacks.STEAL, f"const CANARY = '{canary}';\n{attacks.STEAL_TEST}", LIMITS),
        "spend": (spend, attacks.FORGE_TEST, small),
    }
    succeeded = {}
    for kind, (programs, test, limits) in kinds.items():
        run = [(filled(text), test, "f", False, limits) for text in programs.values()]
        outcomes = both(lambda one: javascript.judge(*one), run)
        passed = [name for name, one in zip(programs, outcomes, strict=True) if one.status == "passed"]
        succeeded[kind] = passed if world() == before else [*passed, "something outside is changed"]
    succeeded["effect"] = []
    for name, text in attacks.EFFECT.items():
        pause = "await new Promise((resolve) => setTimeout(resolve, 50));"
        found(filled(f"function f() {{ {text} }}"), f"try {{ f(); }} catch {{}}\n{pause}")
        if world() != before:
            succeeded["effect"].append(name)
            before = world()
    return succeeded


@needs_node
def test_no_attack_succeeds(tmp_path):
    """In namespaces, and where these are refused."""
    assert sum(map(len, (attacks.FORGE, attacks.STEAL, attacks.EFFECT, attacks.SPEND))) > 120
    processes = []
    for number, confined in enumerate([[], [str(ROOT / "tests/common/confined.py")]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, *confined, __file__, str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, text=True))
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [json.loads(text) for text in said] == [{"forge": [], "steal": [], "spend": [], "effect": []}] * 2


if __name__ == "__main__":
    print(json.dumps(attack(Path(sys.argv[1]), namespaces=sys.argv[1].endswith("0"))))
