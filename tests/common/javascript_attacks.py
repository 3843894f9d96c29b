"""Attacks in JavaScript on what judges it, each a harmless form of one. An attack defines `f`.

FORGE: passes a test that it does not stand. STEAL: `f()` gives the canary, or part of the test. EFFECT: something
outside is changed, reached or left. SPEND: passes, or does not end in time.
"""

# ruff: noqa: E501 (programs, as they are)

FORGE_TEST = """
const secret = [];
const given = {
  list: [1, 2], map: new Map([["a", 1]]), later: Promise.resolve(3), error: new RangeError("e"), date: new Date(0),
  check: (x) => x === 4, emitter: new (require("node:events").EventEmitter)(), Class: class Fake {},
  callback(x) { secret.push(x); return secret.length; },
};
let value;
try {
  value = await f(2, given, (x) => x);
} catch {
  value = undefined;
}
if (globalThis.forged || given.check(5)) return; // an attack has run code in the judge, or changed what is its own
await new Promise((resolve) => setTimeout(resolve, 20));
assert.strictEqual(value, 4);
assert.deepStrictEqual(await f(3, given), { square: 9, list: [9] });
assert.throws(() => f(-1, given), RangeError);
"""

FRAME = """
const frame = (...message) => {
  const body = Buffer.from(JSON.stringify(message)), head = Buffer.alloc(4);
  head.writeUInt32BE(body.length);
  return Buffer.concat([head, body]);
};
const fs = require("fs");
const flood = (data) => { for (let n = 0; n < 64; n += 1) try { if (fs.fstatSync(n).isSocket()) fs.writeSync(n, data); } catch {} };
"""

FORGE = {
    "exit": "process.exit(0);",
    "exit inside": "function f() { process.exit(0); }",
    "reallyExit": "function f() { process.reallyExit(0); }",
    "abort": "function f() { process.abort(); }",
    "prints passed": "console.log('passed'); console.log(JSON.stringify({ status: 'passed', reason: '' })); function f() { process.exit(0); }",
    "reports on every descriptor": """function f() {
      const text = '{"status": "passed", "reason": ""}\\n';
      for (let n = 0; n < 64; n += 1) try { require('fs').writeSync(n, text); } catch {} process.exit(0); }""",
    "reports and goes on": FRAME
    + "function f() { flood(JSON.stringify({ status: 'passed', reason: '' }) + '\\n'); return 5; }",
    "answers ahead": FRAME
    + "function f() { for (let n = 0; n < 50; n += 1) flood(frame('value', n, [4])); return 4; }",
    "gives turns": FRAME
    + "function f() { for (const k of ['loop', 'queue', 'back', 'idle']) flood(frame('turn', 0, [k])); return 4; }",
    "settles what it likes": FRAME
    + "function f() { for (let n = 0; n < 50; n += 1) flood(frame('settle', 0, [n, true, 4])); return new Promise(() => {}); }",
    "calls by number": FRAME
    + """function f() {
      for (let n = 0; n < 20; n += 1) for (const a of ['globalThis.forged = true', 4])
        flood(frame('call', n + 1000, [['own', n], ['undefined'], ['list', [a]]])); return 4; }""",
    "constructs by number": FRAME
    + "function f() { for (let n = 0; n < 20; n += 1) flood(frame('construct', n + 1000, [['own', n], ['list', ['globalThis.forged = true']]])); return 4; }",
    "asks for constructor by number": FRAME
    + "function f() { for (let n = 0; n < 20; n += 1) flood(frame('get', n + 1000, [['own', n], 'constructor'])); return 4; }",
    "sends __proto__": FRAME
    + "function f() { flood(frame('value', 2, [['object', false, [['__proto__', ['object', false, [['square', 9]], null]]], null]])); return 4; }",
    "unknown operations": FRAME
    + "function f() { for (const o of ['__proto__', 'constructor', 'toString', 'valueOf']) flood(frame(o, 9, [4])); return 4; }",
    "patches assert": """const assert = require("assert"); for (const a of [assert, assert.strict]) for (const k of Object.keys(a)) try { a[k] = () => {}; } catch {}
      function f() { return 5; }""",
    "patches promises": "Promise.prototype.then = function (good) { good(4); return this; }; Promise.resolve = () => 4; async function f() { return 5; }",
    "patches JSON": """const s = JSON.stringify; JSON.stringify = (m) => s(Array.isArray(m) && m[0] === 'fail' ? ['value', m[1], [4]] : m);
      JSON.parse = () => ({ status: 'passed' }); function f() { return 5; }""",
    "patches functions": "Function.prototype.call = Function.prototype.apply = () => 4; Function.prototype[Symbol.hasInstance] = () => true; function f() { return 5; }",
    "patches objects": """Object.is = () => true; Object.prototype.status = 'passed'; Object.prototype.square = 9; Reflect.apply = () => 4;
      Array.prototype.map = () => [4]; Array.prototype.push = () => 1; Buffer.from = () => Buffer.alloc(0); function f() { return 4; }""",
    "patches numbers": "Number.isFinite = Number.isInteger = () => true; Map.prototype.has = () => true; function f() { return 5; }",
    "patches fs": "const fs = require('fs'); fs.readSync = fs.writeSync = () => 4; function f() { return 5; }",
    "patches timers": "globalThis.setTimeout = globalThis.setImmediate = process.nextTick = queueMicrotask = () => {}; function f() { return 5; }",
    "valueOf": "const e = { valueOf: () => 4, toString: () => '4', [Symbol.toPrimitive]: () => 4 }; function f() { return e; }",
    "a proxy for a number": "function f() { return new Proxy({}, { get: () => 4 }); }",
    "a boxed number": "function f() { return new Number(4); }",
    "an accessor that changes": "let n = 0; function f(x) { return x === 2 ? 4 : Object.defineProperty({ list: [9] }, 'square', { enumerable: true, get: () => (n += 1) }); }",
    "a thenable": "function f(x) { return { then: (good) => good(x === 2 ? 4 : { square: 9 }) }; }",
    "an equal object": "class E { equals() { return true; } asymmetricMatch() { return true; } get square() { return 9; } get list() { return [9]; } } function f(x) { return x === 2 ? 4 : new E(); }",
    "climbs from a function": """function f(x, given, last) {
      for (const g of [last, given.check, given.callback, given.Class]) for (const k of ['constructor', '__proto__', 'prototype', 'call', 'apply', 'bind', 'caller', 'arguments'])
        try { const h = g[k]; (h.constructor ?? h)('globalThis.forged = true')(); h.constructor.constructor('globalThis.forged = true')(); } catch {} }""",
    "climbs from an object": """function f(x, given) {
      for (const o of [given, given.list, given.map, given.later, given.error, given.date, given.emitter])
        for (const k of ['constructor', '__proto__']) try { o[k].constructor('globalThis.forged = true')(); o.constructor.constructor('return globalThis')().forged = true; } catch {} }""",
    "climbs by descriptor": """function f(x, given) {
      for (const o of [given, given.emitter, given.check]) for (const k of Reflect.ownKeys(o).concat('constructor', '__proto__', 'prototype'))
        try { Object.getOwnPropertyDescriptor(o, k).value.constructor('globalThis.forged = true')(); } catch {} }""",
    "climbs from an exception": "function f(x, given) { try { given.callback.call(Symbol('x')); given.list.reduce(); } catch (e) { e.constructor.constructor('globalThis.forged = true')(); } }",
    "constructs": "function f(x, given) { const made = new given.Class(); made.constructor.constructor('globalThis.forged = true')(); new made.constructor('x'); }",
    "pollutes prototypes": """function f(x, given) {
      given.__proto__.forged = true; given.constructor.prototype.forged = true; given.emitter.__proto__.__proto__.forged = true; Object.setPrototypeOf(given, { check: () => true });
      given.list.__proto__.push = () => 1; given.emitter.__proto__.emit = () => true; return 5; }""",
    "replaces a function of the test": """function f(x, given) {
      try { given.check = () => true; } catch {} try { Object.defineProperty(given, 'check', { value: () => true }); } catch {}
      try { Object.assign(given, { check: () => true }); } catch {} return 4; }""",
    "replaces it by an accessor": "function f(x, given) { try { Object.defineProperty(given, 'check', { get: () => () => true }); } catch {} given.__defineGetter__('check', () => () => true); return 4; }",
    "freezes": "function f(x, given) { try { Object.freeze(given); } catch {} return 5; }",
    "throws strange things": "function f(x, given) { throw { toString() { process.exit(0); } }; }",
    "throws an error that lies": "class E extends Error { get message() { process.exit(0); } get name() { return 'AssertionError'; } } function f() { throw new E(); }",
    "rejects at leisure": "function f() { Promise.reject(new Error('x')); return 4; }",
    "swallows what is uncaught": "process.on('uncaughtException', () => {}); process.on('unhandledRejection', () => {}); function f() { setTimeout(() => { throw 1; }); return 5; }",
    "a worker that reports": """const code = `for (let n = 0; n < 64; n += 1) try { require('fs').writeSync(n, '{"status": "passed", "reason": ""}\\\\n'); } catch {}`;
      function f() { const { Worker } = require('worker_threads'); new Worker(code, { eval: true }); return new Promise((good) => setTimeout(good, 300, 5)); }""",
    "exits from exit": "process.on('exit', () => process.reallyExit(0)); function f() { return 5; }",
    "raw bindings": "function f() { process.binding('process_wrap'); process.binding('fs'); return 5; }",
    "inspects itself": """function f() { const { Session } = require('inspector'); const s = new Session(); s.connect();
      s.post('Runtime.evaluate', { expression: 'process.exit(0)' }); return 4; }""",
    "a flag": "function f() { require('v8').setFlagsFromString('--allow-natives-syntax'); return 5; }",
    "braces that close the program": "}); globalThis.f = () => 4; (function () {",
    "a getter for the name": "Object.defineProperty(globalThis, 'f', { get: () => process.exit(0) });",
    "syntax": "function f( {",
    "nothing": "",
    "the right answer, too late": "let n = 0; function f() { n += 1; if (n > 3) return 4; }",
}

STEAL_TEST = (
    "const found = String(await f());\nassert.ok(found.includes(CANARY) || found.includes('stolen'));\n"
)

STEAL = {
    "readFile": "const f = () => require('fs').readFileSync(SECRET, 'utf8');",
    "promises": "const f = () => require('fs/promises').readFile(SECRET, 'utf8');",
    "stream": "const f = async () => { let t = ''; for await (const p of require('fs').createReadStream(SECRET)) t += p; return t; };",
    "a symbolic link": "const fs = require('fs'); const f = () => { fs.symlinkSync(SECRET, 'way'); return fs.readFileSync('way', 'utf8'); };",
    "a hard link": "const fs = require('fs'); const f = () => { fs.linkSync(SECRET, 'hard'); return fs.readFileSync('hard', 'utf8'); };",
    "a copy": "const fs = require('fs'); const f = () => { fs.cpSync(SECRET, 'copy'); return fs.readFileSync('copy', 'utf8'); };",
    "dots": "const f = () => require('fs').readFileSync('../'.repeat(20) + SECRET, 'utf8');",
    "/proc/self/root": "const f = () => require('fs').readFileSync('/proc/self/root' + SECRET, 'utf8');",
    "/proc/1/root": "const f = () => require('fs').readFileSync('/proc/1/root' + SECRET, 'utf8');",
    "the parent's root": "const f = () => require('fs').readFileSync(`/proc/${process.ppid}/root${SECRET}`, 'utf8');",
    "import of it": "const f = () => import(SECRET + '.mjs').then((m) => m.default);",
    "require of it": "const f = () => require(SECRET + '.json').canary;",
    "fetch of a file": "const f = () => fetch('file://' + SECRET).then((r) => r.text());",
    "its environment": "const f = () => JSON.stringify(process.env);",
    "others' environments": """const fs = require('fs'); const f = () => fs.readdirSync('/proc').filter(Number)
      .map((n) => { try { return fs.readFileSync(`/proc/${n}/environ`, 'utf8'); } catch { return ''; } }).join();""",
    "others' memory": """const fs = require('fs'); const f = () => [process.ppid, process.ppid - 1, process.pid - 1, process.pid + 1, 1]
      .map((n) => { try { return fs.openSync(`/proc/${n}/mem`, 'r') && 'stolen'; } catch { return ''; } }).join();""",
    "others' arguments": "const fs = require('fs'); const f = () => [1, 2, 3, process.ppid, process.pid + 1].map((n) => { try { return fs.readFileSync(`/proc/${n}/cmdline`) && 'stolen'; } catch { return ''; } }).join();",
    "open descriptors": """const fs = require('fs'); const f = () => { let t = ''; for (let n = 3; n < 64; n += 1) {
      try { const b = Buffer.alloc(9999); if (fs.fstatSync(n).isFile()) t += b.toString('utf8', 0, fs.readSync(n, b, 0, 9999, 0)); } catch {} } return t; };""",
    "cat": "const f = () => require('child_process').execFileSync('/bin/cat', [SECRET], { encoding: 'utf8' });",
    "a shell": "const f = () => require('child_process').execSync('cat ' + SECRET, { encoding: 'utf8' });",
    "node itself": "const f = () => require('child_process').execFileSync(process.execPath, ['-p', '1'], { encoding: 'utf8' }) && 'stolen';",
    "a fork": "const f = () => new Promise((good, bad) => { const c = require('child_process').fork('x.js'); c.on('error', bad); if (c.pid) good('stolen'); });",
    "a cluster": "const f = () => { const c = require('cluster'); c.setupPrimary({ exec: 'x.js' }); return c.fork().process.pid ? 'stolen' : ''; };",
    "spawn_sync": "const f = () => { const r = process.binding('spawn_sync').spawn({ file: '/bin/true', args: ['true'], stdio: [] }); return r.error ? '' : 'stolen'; };",
    "dlopen": "const f = () => { process.dlopen({ exports: {} }, '/lib/x86_64-linux-gnu/libm.so.6'); return 'stolen'; };",
    "an addon": "const f = () => { const fs = require('fs'); fs.writeFileSync('a.node', 'x'); try { require('./a.node'); } catch (e) { return e.code === 'ERR_DLOPEN_FAILED' ? 'stolen' : ''; } };",
    "wasi": "const f = () => { const { WASI } = require('wasi'); new WASI({ version: 'preview1', preopens: { '/': '/' } }); return require('fs').readFileSync(SECRET, 'utf8'); };",
    "openAsBlob": "const f = async () => (await require('fs').openAsBlob(SECRET)).text();",
    "the test's source": "const f = () => [new Error().stack, process.argv, process.execArgv, Object.keys(require.cache)].map(String).join().includes('found' + '.includes') ? 'stolen' : '';",
    "the test through the stack": """const f = () => { Error.prepareStackTrace = (e, s) => s.map((c) => String(c.getFunction?.()) + c.getFileName()).join();
      return new Error().stack.includes('found' + '.includes') ? 'stolen' : ''; };""",
    "execve": "const f = () => { process.execve?.('/bin/cat', ['cat', SECRET]); process.execve?.(process.execPath, ['node', '-p', '1']); return ''; };",
    "setuid": "const f = () => { process.setuid(0); process.seteuid(0); return require('fs').readFileSync(SECRET, 'utf8'); };",
    "chdir": "const f = () => { process.chdir('/'); return require('fs').readFileSync('.' + SECRET, 'utf8'); };",
}

EFFECT = {
    "write": "require('fs').writeFileSync(TARGET, 'x');",
    "append": "require('fs').appendFileSync(TARGET, 'x');",
    "truncate": "require('fs').truncateSync(TARGET, 0);",
    "remove": "require('fs').rmSync(TARGET);",
    "rename": "require('fs').renameSync(TARGET, TARGET + '2');",
    "chmod": "require('fs').chmodSync(TARGET, 0);",
    "times": "require('fs').utimesSync(TARGET, 0, 0);",
    "a report": "process.report.directory = require('path').dirname(TARGET); process.report.writeReport(TARGET);",
    "a heap snapshot": "require('v8').writeHeapSnapshot(TARGET);",
    "a folder beside": "require('fs').mkdirSync(require('path').dirname(TARGET) + '/made');",
    "kill": "for (const s of ['SIGKILL', 'SIGUSR2']) process.kill(RUNNER, s);",
    "kill all": "process.kill(-1, 'SIGTERM');",
    "connect": "require('net').connect(PORT, '127.0.0.1');",
    "connect by name": "require('net').connect(PORT, 'localhost');",
    "fetch": "fetch(`http://127.0.0.1:${PORT}/`).catch(() => {});",
    "http": "require('http').get({ port: PORT, host: '127.0.0.1' }).on('error', () => {});",
    "dgram": "require('dgram').createSocket('udp4').send('x', PORT, '127.0.0.1');",
    "listen": "require('net').createServer().listen(0, () => { require('fs').writeFileSync(TARGET, 'x'); });",
    "inspector": "require('inspector').open(0, '127.0.0.1'); if (require('inspector').url()) require('net').connect(PORT, '127.0.0.1');",
    "a child": "require('child_process').spawn('/bin/sh', ['-c', `echo x > ${TARGET}`]).on('error', () => {});",
    "a detached child": "require('child_process').spawn('/bin/sleep', ['60'], { detached: true, stdio: 'ignore' }).unref();",
}

SPEND = {
    "a loop": "function f() { for (;;); }",
    "a loop at load": "for (;;); function f() {}",
    "a loop of promises": "async function f() { for (;;) await null; }",
    "a loop in a worker": "function f() { new (require('worker_threads').Worker)('for (;;);', { eval: true }); return new Promise(() => {}); }",
    "never settles": "function f() { return new Promise(() => {}); }",
    "never calls back": "async function f() { await new Promise(() => {}); return 4; }",
    "a loop past SIGXCPU": "for (const s of ['SIGXCPU', 'SIGTERM', 'SIGINT']) try { process.on(s, () => {}); } catch {} function f() { for (;;); }",
    "calls to and fro": "function f(x, given) { for (;;) given.callback(1); }",
    "arrays": "function f() { const a = []; for (;;) a.push(new Array(1e5).fill(1.5)); }",
    "buffers": "function f() { const a = []; for (;;) a.push(Buffer.alloc(1 << 24, 1)); }",
    "shared memory": "function f() { const a = []; for (;;) { const b = new Uint8Array(new SharedArrayBuffer(1 << 24)); b.fill(1); a.push(b); } }",
    "a long text": "function f() { return 'x'.repeat(1 << 28); }",
    "many values": "function f() { return Array.from({ length: 3e6 }, (_, n) => n); }",
    "deep values": "function f() { let a = []; for (let n = 0; n < 1e5; n += 1) a = [a]; return a; }",
    "round values": "function f() { const a = {}; a.a = a; return a; }",
    "a long array": "function f() { return new Array(4e9); }",
    "a file": "function f() { const fs = require('fs'); const b = Buffer.alloc(1 << 20); for (;;) fs.appendFileSync('big', b); }",
    "files": "function f() { const fs = require('fs'); for (let n = 0; ; n += 1) fs.writeFileSync(`${n}`, Buffer.alloc(1 << 16)); }",
    "threads": "function f() { const { Worker } = require('worker_threads'); const all = []; for (let n = 0; n < 200; n += 1) all.push(new Worker('setInterval(() => {}, 1e6)', { eval: true })); return new Promise(() => {}); }",
    "descriptors": "function f() { const fs = require('fs'); for (;;) fs.openSync('x', 'w'); }",
    "recursion": "function f(x, given) { const g = () => { given.callback(1); g(); }; g(); }",
    "stopped by itself": "function f() { require('child_process').execSync('sleep 60'); process.kill(process.pid, 'SIGSTOP'); return new Promise(() => {}); }",
}
