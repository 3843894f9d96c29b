"""Handling: what a piece of JavaScript does about its errors, told by its syntax tree."""

import json

import pytest
from conftest import ROOT

from stages.common.handling import handles

YES = [
    "try { a() } catch (e) { b(e) }",
    "try { a() } catch { return null }",
    "p.catch((e) => log(e))",
    "p.then(f, g)",
    's.on("error", (e) => log(e))',
    "s.once('error', reject)",
    'w.addEventListener("error", f, { signal })',
    'img.onerror = () => reject(new Error("x"))',
    'if (!r.ok) throw new Error("x")',
    "if (r.status !== 200) { return null }",
    "if (b === 0) return NaN",
    'if (b == 0) { return { error: "zero" } }',
    'if (x > 5) throw new RangeError("x")',
    "fs.readFile(p, (err, t) => { if (err) return callback(err); callback(null, t) })",
    "if (err) { reject(err) } else { resolve(x) }",
    "if (res.headersSent) { return next(err); }",
    'if (typeof x !== "string") return undefined',
    'if (a) { b() } else { throw new Error("x") }',
    "function f(x) { if (x === undefined) return; g(x) }",
    'if (!response.ok) return Promise.reject(new Error("x"))',
    "if (b === 0) return { ok: false }",
    "p?.catch(log)",
    "p.then((x) => x).catch(console.error)",
    "async function f() { for (const a of b) { try { await a() } catch (e) { c.push(e) } } }",
]
NO = [
    "",
    "// try { } catch (e) { f(e) }",
    '"p.catch(f)"',
    "try { a() } finally { b() }",
    "try { a() } catch (e) {}",
    "try { a() } catch (e) { /* ignore */ }",
    "try { a() } catch (err) { throw err; }",
    "p.catch(() => {})",
    "p.then(f)",
    "p.then(f, undefined)",
    's.on("data", f)',
    's.on("error", () => {})',
    'emit("error", e)',
    "if (r.ok) return r",
    "if (a < b) return -1",
    "if (x) return false",
    "if (a) { b() } else { c() }",
    'if (a) { later(() => { throw new Error("x") }) }',
    "img.onload = f",
    "catchAll(f)",
    "return x || null",
    "if (x === 0) return 1",
    "if (r.ok) { return r.json() }",
    "x.catch",
]


@pytest.mark.parametrize("code", YES)
def test_code_that_handles_an_error(code):
    assert handles(code)


@pytest.mark.parametrize("code", NO)
def test_code_that_does_not(code):
    assert not handles(code)


@pytest.mark.parametrize(
    "code",
    ["\x00", "(" * 20_000, "if(a)" * 3000 + "throw b", "try{" * 3000, "x=()=>" * 5000 + "1", "a\ud800"],
    ids=lambda code: repr(code[:6]),
)
def test_odd_code_gets_an_answer(code):
    assert handles(code) in (True, False)


def test_the_shipped_rows_are_told_apart():
    rows = [
        row
        for line in (ROOT / "data/handmade/error_handling.jsonl").read_text(encoding="utf-8").splitlines()
        for row in (json.loads(line),)
        if row["language"] == "javascript"
    ]
    assert len(rows) >= 100
    assert [row["instruction"] for row in rows if not handles(row["code"])] == []
    assert [row["instruction"] for row in rows if handles(row["incomplete"])] == []
