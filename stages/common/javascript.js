// One side of the talk between the judge, which runs a test in JavaScript, and the suspect, which runs the
// answer.
//
// `stages.common.forkserver` starts node with this text (`node -e`), once for each side, in the jail. The
// arguments are descriptors: of the talk, of a file that says as JSON what to do and, for the judge alone, of
// the report, which decides. The suspect cannot report: all that an answer could forge, this file's part in
// it included, is what it says in the talk, and the judge takes nothing from that but data of the forms
// below.
//
// To the judge, what the answer returns is a copy, made anew of the judge's own classes, but for functions,
// promises, the methods of instances, and for what was the test's to begin with and comes back as itself. To
// the suspect, the test's objects are proxies, so that changes in place reach the test; dates and bytes are
// copies. A function of the test can be called, and that is all: no answer can climb from it to `Function`,
// or replace it.
//
// Only one side runs at a time, as if both had one event loop: before either goes on to its next event, what
// both have queued is done. So a verdict does not depend on which process the machine favours.
"use strict";
((require) => {
  const fs = require("node:fs");
  const vm = require("node:vm");
  const { builtinModules, createRequire } = require("node:module");
  const { types } = require("node:util");
  const { isPromise, isDate, isNativeError, isAnyArrayBuffer, isMap, isSet, isRegExp } = types;
  const { readSync, writeSync } = fs;
  const { parse, stringify } = JSON;
  const { then } = Promise.prototype;
  const { getTime } = Date.prototype;
  const { setTimeout: setTimer, clearTimeout: clearTimer } = globalThis;
  const { setImmediate: next, queueMicrotask: queue } = globalThis;
  const { nextTick } = process;
  const exit = process.reallyExit.bind(process);

  const LONGEST = 8 << 20; // bytes of a message
  const DEEPEST = 200; // levels of data, and of calls to and fro
  const SLICE = 1; // milliseconds after which a side that waits lets the other one wait
  const [talk, task, report] = process.argv.slice(1).map(Number);
  const given = parse(fs.readFileSync(task, "utf8"));
  const judging = "test" in given;
  fs.closeSync(task);

  class Unsendable extends TypeError {}
  class Malformed extends Error {}
  class Refused extends Error {} // the answer cannot be judged at all
  class List {
    constructor(items) {
      this.items = items;
    }
  }

  function define(thing, key, value, enumerable = true) {
    return Object.defineProperty(thing, key, { value, enumerable, writable: true, configurable: true });
  }

  // --- data ------------------------------------------------------------------------------------------------

  const ERRORS = {
    ...{ Error, TypeError, RangeError, SyntaxError, ReferenceError, EvalError, URIError, AggregateError },
  };
  const ERROR_KEYS = new Set(["name", "message", "stack", "cause", "errors"]);
  const BINARY = {
    ...{ Buffer, ArrayBuffer, SharedArrayBuffer, DataView, Int8Array, Uint8ClampedArray, Uint16Array },
    ...{ Int16Array, Uint32Array, Int32Array, Float32Array, Float64Array, BigInt64Array, BigUint64Array },
    Uint8Array,
  };
  const SYMBOLS = new Map(
    Object.getOwnPropertyNames(Symbol)
      .filter((name) => typeof Symbol[name] === "symbol")
      .map((name) => [Symbol[name], name]),
  );
  const KEYS = new Map([...SYMBOLS].map(([symbol, name]) => [name, symbol]));

  const things = []; // what the other side may refer to, by number
  const numbers = new Map();
  const theirs = new Map(); // what stands here for the other side's things, by number
  const proxies = new WeakMap(); // and the numbers of these
  const copies = new WeakMap(); // likewise of copies whose original has methods
  const settling = new Map(); // how to settle the promises among them
  const answers = new WeakSet(); // errors of the answer

  const isKey = (key) => typeof key === "string" || SYMBOLS.has(key);

  function number(thing) {
    if (!numbers.has(thing)) {
      const index = things.push(thing) - 1;
      numbers.set(thing, index);
      if (isPromise(thing)) {
        const settled = (good) => (value) => post("settle", index, good, value);
        Reflect.apply(then, thing, [settled(true), settled(false)]);
      }
    }
    return numbers.get(thing);
  }

  function pack(value, depth = 0) {
    switch (typeof value) {
      case "string":
      case "boolean":
        return value;
      case "number":
        if (Number.isFinite(value) && !Object.is(value, -0)) return value;
        return ["number", Object.is(value, -0) ? "-0" : `${value}`];
      case "bigint":
        return ["bigint", value < 0n, (value < 0n ? -value : value).toString(16)];
      case "symbol":
        if (!SYMBOLS.has(value)) throw new Unsendable("a symbol of one side means nothing to the other");
        return ["symbol", SYMBOLS.get(value)];
      case "undefined":
        return ["undefined"];
    }
    if (value === null) return null;
    if (depth > DEEPEST) throw new Unsendable(`nested deeper than ${DEEPEST}`);
    if (value instanceof List) return ["list", value.items.map((item) => pack(item, depth + 1))];
    if (proxies.has(value)) return ["own", proxies.get(value)];
    if (copies.has(value)) return ["own", copies.get(value)];
    if (typeof value === "function") return ["function", number(value), nameOf(value)];
    if (isPromise(value)) return ["promise", number(value)];
    if (isDate(value)) return ["date", pack(Reflect.apply(getTime, value, []))];
    if (ArrayBuffer.isView(value) || isAnyArrayBuffer(value)) return packBytes(value);
    return judging ? ["ref", number(value), shapeOf(value)] : packCopy(value, depth);
  }

  function packBytes(value) {
    const name = Object.keys(BINARY).find((kind) => value instanceof BINARY[kind]);
    const { buffer, byteOffset, byteLength } = ArrayBuffer.isView(value) ? value : new Uint8Array(value);
    return ["bytes", name, Buffer.from(buffer, byteOffset, byteLength).toString("base64")];
  }

  function nameOf(value) {
    const name = Object.getOwnPropertyDescriptor(value, "name")?.value;
    return typeof name === "string" ? name.slice(0, 200) : "";
  }

  function is(value, kind) {
    if (kind === "array" ? !Array.isArray(value) : typeof value !== kind) throw new Malformed(`no ${kind}`);
    return value;
  }

  function unpack(data, depth = 0) {
    if (data === null || typeof data !== "object") return data;
    if (depth > DEEPEST) throw new Malformed(`nested deeper than ${DEEPEST}`);
    const [tag, ...content] = is(data, "array");
    const read = unpackers[tag];
    if (typeof tag !== "string" || read === undefined) throw new Malformed("an unknown tag");
    return read(depth + 1, ...content);
  }

  const unpackers = Object.assign(Object.create(null), {
    undefined: () => undefined,
    number: (_, text) => Number(is(text, "string")),
    bigint: (_, negative, digits) => (negative === true ? -1n : 1n) * BigInt(`0x${is(digits, "string")}`),
    symbol: (_, name) => (KEYS.has(name) ? KEYS.get(name) : is(name, "symbol")),
    list: (depth, items) => is(items, "array").map((item) => unpack(item, depth)),
    own: (_, index) => (Number.isInteger(index) && index in things ? things[index] : is(index, "own")),
    function: (_, index, name) => standIn(is(index, "number"), () => caller(is(name, "string"))),
    promise: (_, index) =>
      standIn(is(index, "number"), () => new Promise((...both) => settling.set(index, both))),
    date: (depth, time) => new Date(is(unpack(time, depth), "number")),
    bytes(_, name, text) {
      const bytes = Buffer.from(is(text, "string"), "base64");
      if (name === "Buffer") return bytes;
      const copy = new Uint8Array(bytes).buffer;
      if (!Object.hasOwn(BINARY, is(name, "string"))) throw new Malformed("bytes of an unknown kind");
      return name.endsWith("ArrayBuffer") ? copy : new BINARY[name](copy);
    },
    ...(judging ? copying() : { ref: (_, index, shape) => standIn(index, () => proxy(shape)) }),
  });

  function standIn(index, make) {
    if (!theirs.has(index)) {
      theirs.set(index, make());
      proxies.set(theirs.get(index), index);
    }
    return theirs.get(index);
  }

  function caller(name) {
    const called = function (...all) {
      if (new.target) return ask("construct", called, new List(all));
      return ask("call", called, judging || proxies.has(this) ? this : undefined, new List(all));
    };
    return define(called, "name", name, false);
  }

  // --- the talk --------------------------------------------------------------------------------------------

  let asked = 0;
  let level = 0; // calls to and fro that have not come back
  const early = new Map(); // answers to other questions than the last

  function write(message) {
    const body = Buffer.from(stringify(message));
    if (body.length > LONGEST) {
      throw new Unsendable(`a message of ${body.length} bytes; expected at most ${LONGEST}`);
    }
    const head = Buffer.alloc(4);
    head.writeUInt32BE(body.length);
    for (let rest = Buffer.concat([head, body]); rest.length > 0; ) {
      rest = rest.subarray(alive(() => writeSync(talk, rest)));
    }
  }

  function read(size) {
    const bytes = Buffer.alloc(size);
    for (let done = 0; done < size; ) {
      done += alive(() => readSync(talk, bytes, done, size - done));
    }
    return bytes;
  }

  // The other side is gone where no byte can be moved; how it ended is not for this side to say.
  function alive(move) {
    let count = 0;
    try {
      count = move();
    } catch {
      exit(3);
    }
    return count || exit(3);
  }

  function broken(reason) {
    if (judging) verdict("failed", `answer: ${reason}`);
    exit(3);
  }

  function receive() {
    const size = read(4).readUInt32BE();
    if (size > LONGEST) broken(`sent a message of ${size} bytes; expected at most ${LONGEST}`);
    const body = read(size).toString();
    try {
      const [operation, index, content] = is(parse(body), "array");
      return [is(operation, "string"), is(index, "number"), is(content, "array")];
    } catch {
      return broken("sent a message of an unknown form");
    }
  }

  function understood(content) {
    try {
      return content.map((item) => unpack(item));
    } catch {
      return broken("sent a value that cannot be read");
    }
  }

  function send(operation, index, content) {
    if (judging) tellGlobals();
    write([operation, index, content]);
  }

  // Ask the other side and wait for its answer; what it asks meanwhile is served.
  function ask(operation, ...values) {
    if (level > DEEPEST) throw new RangeError("calls to and fro are nested too deep");
    const content = values.map((value) => pack(value));
    asked += 1;
    moved();
    send(operation, asked, content);
    const [kind, value] = listen(asked);
    if (kind === "error") throw value;
    return value;
  }

  // Tell the other side what needs no answer.
  function post(operation, ...values) {
    moved();
    try {
      send(operation, 0, values.map((value) => pack(value)));
    } catch (problem) {
      const error = pack(new TypeError(problem.message));
      send(operation, 0, operation === "settle" ? [values[0], false, error] : [error]);
    }
  }

  // Serve the other side until it answers the question of this number or, for 0, until it gives the turn.
  function listen(index) {
    level += 1;
    try {
      for (;;) {
        if (index > 0 && early.has(index)) {
          const found = early.get(index);
          early.delete(index);
          return found;
        }
        const [operation, to, content] = receive();
        if (operation === "turn") {
          return index === 0 ? content[0] : broken("gave a turn that it did not have");
        } else if (operation === "value" || operation === "error") {
          early.set(to, [operation, understood(content)[0]]);
        } else if (operation === "fail") {
          broken(String(content[0]));
        } else {
          serve(operation, to, content);
        }
      }
    } finally {
      level -= 1;
    }
  }

  function serve(operation, index, content) {
    if (!Object.hasOwn(handlers, operation)) broken("sent a question of an unknown form");
    const values = understood(content);
    let reply;
    try {
      reply = ["value", pack(handlers[operation](...values))];
    } catch (problem) {
      reply = failure(problem);
    }
    if (index === 0) return;
    try {
      send(reply[0], index, [reply[1]]);
    } catch (problem) {
      send("fail", index, [problem.message]);
    }
  }

  function failure(problem) {
    const final = problem instanceof Refused || problem instanceof Unsendable;
    if (final && !judging) return ["fail", problem.message];
    try {
      return ["error", pack(problem)];
    } catch (another) {
      return ["fail", told(another)];
    }
  }

  function settle(index, good, value) {
    if (!settling.has(index)) broken("settled a promise that it never gave");
    queue(() => settling.get(index)[good === true ? 0 : 1](value)); // a `then` of the value's is asked for
  }

  function told(problem) {
    let text = "thrown without a text";
    try {
      text = problem instanceof Error ? `${problem.name}: ${problem.message}` : `thrown: ${problem}`;
    } catch {
      // whatever its own methods do
    }
    return (answers.has(problem) ? "answer: " : "") + text.replace(/\s+/g, " ").trim();
  }

  // --- whose turn it is ------------------------------------------------------------------------------------

  let dirty = false; // this side has given the other one something to do
  let borrowed = false; // it is the other side's turn as soon as what is queued here is done
  let alone = false; // the other side waits for nothing
  let draining = false;
  let watching = false;

  function moved() {
    dirty = true;
    alone = false;
    arrange();
  }

  function arrange() {
    if (!draining) {
      draining = true;
      queue(() => nextTick(drained)); // runs when the queue of promises is empty, before the next event
    }
    if (!watching && !alone) {
      watching = true;
      next(() => setTimer(waited, SLICE).unref()); // `next` brings the loop's clock up to date
    }
  }

  function drained() {
    draining = false;
    if (borrowed) give("back");
    else if (dirty) give("queue");
  }

  function waited() {
    watching = false;
    if (!alone) give("loop");
  }

  // Give the turn, for what is queued on the other side or for its events, and wait for it.
  function give(kind) {
    dirty = false;
    write(["turn", 0, [kind]]);
    take(listen(0));
  }

  function take(kind) {
    borrowed = kind === "queue";
    if (kind === "loop" || kind === "idle") alone = kind === "idle";
    arrange();
  }

  process.on("beforeExit", () => {
    if (judging && alone) verdict("failed", "test: nothing is left to wait for, and its end is not reached");
    give("idle");
    next(() => {}); // there may be something now
  });

  // --- the judge -------------------------------------------------------------------------------------------

  const HIDDEN = new Set([
    ...["constructor", "prototype", "__proto__", "caller", "callee", "arguments", "stack"],
    ...["__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__"],
  ]);
  const SHARED = [Object.prototype, Array.prototype, Error.prototype]; // whose functions each side has itself
  const CLASSES = new Set([
    ...[...Object.keys(ERRORS), "Map", "Set", "RegExp", "URL", "URLSearchParams", "AbortController"],
    ...["AbortSignal", "Event", "EventTarget", "Headers", "Request", "Response"], // some load at first use
  ]);
  const STREAMS = new Set(["Readable", "Writable", "Duplex", "Transform", "PassThrough"]);

  function classOf(name) {
    if (name === "EventEmitter") return require("node:events");
    if (STREAMS.has(name)) return require("node:stream")[name];
    return CLASSES.has(name) ? globalThis[name] : undefined;
  }

  // The name of the nearest class of an object that both sides know, "" for none.
  function shapeOf(thing) {
    if (Array.isArray(thing)) return "Array";
    let kind = Object.getPrototypeOf(thing);
    if (kind === null) return "null";
    for (; kind !== null; kind = Object.getPrototypeOf(kind)) {
      const made = Object.getOwnPropertyDescriptor(kind, "constructor")?.value;
      if (typeof made === "function" && classOf(made.name) === made) return made.name;
    }
    return "";
  }

  const open = (thing, key) => typeof thing === "object" && isKey(key) && !HIDDEN.has(key);
  const loose = (thing, key) =>
    open(thing, key) && (typeof thing[key] !== "function" || proxies.has(thing[key]));

  const judge = {
    get(thing, key) {
      const value = open(thing, key) ? thing[key] : undefined;
      const shared = typeof value === "function" && SHARED.some((kind) => kind[key] === value);
      return new List(shared || !open(thing, key) ? [] : [value]);
    },
    set: (thing, key, value) => loose(thing, key) && Reflect.set(thing, key, value),
    has: (thing, key) => open(thing, key) && key in thing,
    delete: (thing, key) => loose(thing, key) && Reflect.deleteProperty(thing, key),
    keys(thing) {
      const keys = typeof thing === "object" ? Reflect.ownKeys(thing) : [];
      return new List(keys.filter((key) => open(thing, key)));
    },
    describe(thing, key) {
      const found = open(thing, key) ? Object.getOwnPropertyDescriptor(thing, key) : undefined;
      return new List(found ? [thing[key], found.enumerable] : []);
    },
    call: (thing, self, all) => Reflect.apply(is(thing, "function"), self, is(all, "array")),
    construct: (thing, all) => Reflect.construct(is(thing, "function"), is(all, "array")),
    settle,
    uncaught: (problem) => nextTick(() => process.emit("uncaughtException", problem, "uncaughtException")),
  };

  // How what the answer sends is built anew.
  function copying() {
    const into = (made, entries, depth) => {
      for (const [key, item] of is(entries, "array")) define(made, is(key, "string"), unpack(item, depth));
      return made;
    };
    const remembered = (made, index) => {
      if (index !== null) copies.set(made, is(index, "number"));
      return made;
    };
    return {
      array(depth, items) {
        const made = new Array(is(items, "array").length);
        items.forEach((item, index) => {
          if (!(Array.isArray(item) && item[0] === "hole")) made[index] = unpack(item, depth);
        });
        return made;
      },
      object: (depth, bare, entries, index) =>
        remembered(into(bare === true ? Object.create(null) : {}, entries, depth), index),
      map: (depth, pairs) => new Map(is(pairs, "array").map((pair) => unpackers.list(depth, pair))),
      set: (depth, items) => new Set(unpackers.list(depth, items)),
      regexp: (_, source, flags) => new RegExp(is(source, "string"), is(flags, "string")),
      instance(depth, name, entries, index, methods) {
        const kind = define({}, "constructor", define(() => {}, "name", is(name, "string"), false), false);
        for (const [key, item] of is(methods, "array")) {
          const named = Array.isArray(key) ? is(unpack(key), "symbol") : is(key, "string");
          define(kind, named, unpack(item, depth), false);
        }
        return remembered(into(Object.create(kind), entries, depth), index);
      },
      error(depth, kind, name, message, hidden, entries) {
        is(message, "string");
        const found = Object.hasOwn(ERRORS, is(kind, "string")) ? ERRORS[kind] : Error;
        const made = found === AggregateError ? new AggregateError([], message) : new found(message);
        if (made.name !== name) define(made, "name", is(name, "string"), false);
        define(made, "stack", `${name}: ${message}`, false);
        for (const [key, item] of is(hidden, "array")) {
          define(made, key === "errors" ? key : "cause", unpack(item, depth), false);
        }
        answers.add(made);
        return into(made, entries, depth);
      },
    };
  }

  // Globals that a test sets are there before the answer goes on.
  const watched = { globalThis, console };
  let known = new Map();

  function globals() {
    const all = Object.entries(watched).flatMap(([owner, thing]) =>
      Object.entries(Object.getOwnPropertyDescriptors(thing)).map(([key, found]) => [
        stringify([owner, key]),
        found.get ?? found.value,
      ]),
    );
    return new Map(all);
  }

  function tellGlobals() {
    const now = globals();
    for (const name of new Set([...known.keys(), ...now.keys()])) {
      if (now.has(name) && known.has(name) && Object.is(now.get(name), known.get(name))) continue;
      const [owner, key] = parse(name);
      write(["global", 0, [owner, key, ...(now.has(name) ? [pack(watched[owner][key])] : [])]]);
    }
    known = now;
  }

  function verdict(status, reason) {
    writeSync(report, `${stringify({ status, reason, token: given.token })}\n`);
    exit(0);
  }

  // A timer of the test's goes off after all that went off on the other side before it.
  function delayTimers() {
    const cancelled = new WeakSet();
    const delayed = (callback, after, ...all) => {
      if (typeof callback !== "function") return setTimer(callback);
      const timer = setTimer(() => {
        if (!alone) give("loop");
        next(() => cancelled.has(timer) || callback(...all));
      }, after);
      return timer;
    };
    define(globalThis, "setTimeout", delayed);
    define(globalThis, "clearTimeout", (timer) => {
      if (typeof timer === "object" && timer !== null) cancelled.add(timer);
      clearTimer(timer);
    });
  }

  async function runTest() {
    const entry = define((...all) => ask("enter", new List(all)), "name", given.entry_point, false);
    const names = {
      ...{ [given.entry_point]: entry, assert: require("node:assert") },
      ...{ require: createRequire(`${process.cwd()}/test.js`) },
    };
    const body = `return (async () => {${given.test}\n})();`;
    const program = vm.compileFunction(body, Object.keys(names), { importModuleDynamically });
    await program(...Object.values(names));
  }

  // --- the suspect -----------------------------------------------------------------------------------------

  const selves = new WeakMap(); // the proxy of each target
  const remote = (target, operation, ...values) => ask(operation, selves.get(target), ...values);
  const traps = {
    get(target, key, receiver) {
      if (key === "stack" && target instanceof Error) return `${receiver.name}: ${receiver.message}`;
      const here = !isKey(key) || (Array.isArray(target) && key !== "length" && key in target);
      const found = here ? [] : remote(target, "get", key);
      return found.length > 0 ? found[0] : Reflect.get(target, key, receiver);
    },
    set: (target, key, value, receiver) =>
      receiver === selves.get(target)
        ? remote(target, "set", key, value)
        : Boolean(define(receiver, key, value)),
    has: (target, key) => key in target || (isKey(key) && remote(target, "has", key)),
    deleteProperty: (target, key) => remote(target, "delete", key),
    ownKeys: (target) => remote(target, "keys"),
    getOwnPropertyDescriptor(target, key) {
      const [value, enumerable] = isKey(key) ? remote(target, "describe", key) : [];
      const configurable = !(Array.isArray(target) && key === "length");
      return enumerable === undefined ? undefined : { value, enumerable, writable: true, configurable };
    },
    defineProperty: (target, key, found) => "value" in found && remote(target, "set", key, found.value),
    setPrototypeOf: () => false,
    preventExtensions: () => false,
  };

  function proxy(shape) {
    const kind = shape === "null" ? null : (classOf(shape)?.prototype ?? Object.prototype);
    const target = shape === "Array" ? [] : Object.create(kind);
    selves.set(target, new Proxy(target, traps));
    return selves.get(target);
  }

  function packCopy(value, depth) {
    const packed = (item) => pack(item, depth + 1);
    const entries = (keys) => keys.map((key) => [key, packed(value[key])]);
    if (Array.isArray(value)) {
      return ["array", Array.from(value, (item, index) => (index in value ? packed(item) : ["hole"]))];
    }
    if (isMap(value)) return ["map", [...value].map((pair) => pair.map(packed))];
    if (isSet(value)) return ["set", [...value].map(packed)];
    if (isRegExp(value)) return ["regexp", value.source, value.flags];
    if (isNativeError(value) || value instanceof Error) {
      const found = Object.keys(ERRORS).findLast((name) => value instanceof ERRORS[name]) ?? "Error";
      const hidden = ["cause", "errors"].filter((key) => Object.hasOwn(value, key));
      const own = Object.keys(value).filter((key) => !ERROR_KEYS.has(key));
      const kept = (keys) => keys.flatMap((key) => sendable(value[key], depth).map((item) => [key, item]));
      return ["error", found, String(value.name), String(value.message), kept(hidden), kept(own)];
    }
    const kind = Object.getPrototypeOf(value);
    const own = entries(Object.keys(value));
    if (kind === null || kind === Object.prototype) {
      const acts = own.some(([, item]) => Array.isArray(item) && item[0] === "function");
      return ["object", kind === null, own, acts ? number(value) : null];
    }
    const methods = [...methodsOf(kind)].map(([key, method]) => [packed(key), packed(method)]);
    return ["instance", nameOf(kind.constructor ?? {}), own, number(value), methods];
  }

  // What an error carries, alone in a list, or nothing where it cannot be sent: it may hold itself.
  function sendable(value, depth) {
    try {
      return [pack(value, depth + DEEPEST / 4)];
    } catch (problem) {
      if (problem instanceof Unsendable) return [];
      throw problem;
    }
  }

  function methodsOf(kind) {
    const found = new Map();
    for (; kind !== null && kind !== Object.prototype; kind = Object.getPrototypeOf(kind)) {
      for (const key of Reflect.ownKeys(kind).filter((one) => isKey(one) && one !== "constructor")) {
        const { value } = Object.getOwnPropertyDescriptor(kind, key);
        if (typeof value === "function" && !found.has(key)) found.set(key, value);
      }
    }
    return found;
  }

  // A copy of what is the test's, for `structuredClone`, which refuses proxies.
  function localised(value, done = new Map()) {
    if (typeof value !== "object" || value === null) return value;
    const kind = Object.getPrototypeOf(value);
    if (!proxies.has(value) && kind !== Object.prototype && kind !== Array.prototype) return value;
    if (done.has(value)) return done.get(value);
    if (value instanceof Error) return new (ERRORS[value.name] ?? Error)(value.message);
    const each = (items) => [...items].map((one) => localised(one, done));
    if (value instanceof Map) return new Map([...value].map(each));
    if (value instanceof Set) return new Set(each(value));
    const made = Array.isArray(value) ? [] : {};
    done.set(value, made);
    for (const key of Object.keys(value)) define(made, key, localised(value[key], done));
    return made;
  }

  let entry; // the answer's function, once it is loaded

  function load() {
    const { answer, entry_point: name } = given;
    const module = { exports: {} };
    let binding = () => undefined;
    const names = {
      ...{ exports: module.exports, require: createRequire(`${process.cwd()}/answer.js`), module },
      ...{ __filename: `${process.cwd()}/answer.js`, __dirname: process.cwd() },
      ...{ __bind: (find) => (binding = find) },
    };
    const found = name ? `__bind(() => typeof ${name} === "undefined" ? undefined : ${name});` : "";
    const compiled = (code) => vm.compileFunction(code, Object.keys(names), { importModuleDynamically });
    let program;
    try {
      program = compiled(found + answer);
    } catch (problem) {
      try {
        program = compiled(`return (async () => {${found}${answer}\n})();`); // it awaits at its top level
      } catch {
        throw problem;
      }
    }
    program.apply(module.exports, Object.values(names));
    const { exports } = module;
    const places = [binding(), exports?.[name], exports?.default?.[name], exports, exports?.default];
    entry = places.slice(0, given.any ? 5 : 3).find((one) => typeof one === "function");
    if (entry === undefined) throw new ReferenceError(`no function ${name || "at the top level"}`);
  }

  const suspect = {
    enter(all) {
      try {
        if (entry === undefined) load();
      } catch (problem) {
        throw new Refused(told(problem));
      }
      return Reflect.apply(entry, undefined, all);
    },
    call: (thing, self, all) => Reflect.apply(thing, self, all),
    construct: (thing, all) => Reflect.construct(thing, all),
    settle,
    global(owner, key, ...value) {
      if (value.length > 0) define(watched[owner], key, value[0]);
      else delete watched[owner][key];
    },
  };

  // --- both ------------------------------------------------------------------------------------------------

  const handlers = judging ? judge : suspect;
  const importModuleDynamically = (name) => import(name);
  const added = builtinModules.filter((name) => {
    const found = Object.getOwnPropertyDescriptor(globalThis, name);
    return name !== "process" && found?.set && !found.enumerable; // not `crypto` where that is a global
  });
  for (const name of [...added, "module", "exports", "require", "__filename", "__dirname"]) {
    delete globalThis[name]; // what only `node -e` has
  }
  process.argv.length = 1;
  process.execArgv.length = 0;
  process.on("uncaughtException", (problem) => {
    if (process.listenerCount("uncaughtException") > 1) return;
    if (judging) verdict("failed", told(problem));
    else post("uncaught", problem);
  });
  if (judging) {
    delayTimers();
    known = globals();
    runTest().then(
      () => verdict("passed", ""),
      (problem) => verdict("failed", told(problem)),
    );
  } else {
    const clone = structuredClone;
    define(globalThis, "structuredClone", (value, options) => clone(localised(value), options), false);
    take(listen(0));
  }
})(require);
