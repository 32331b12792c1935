// Checks by name, counted; the first thing that is wrong does not hide the next.
import { isDeepStrictEqual } from 'node:util';

const failures = [];
let passed = 0;

function show(value) {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return text === undefined || text.length < 400 ? text : `${text.slice(0, 400)}…`;
}

export function ok(what, condition, detail) {
  if (condition) {
    passed += 1;
  } else {
    failures.push(detail === undefined ? what : `${what}: ${show(detail)}`);
  }
}

export function same(what, found, expected) {
  ok(what, isDeepStrictEqual(found, expected), `${show(found)} instead of ${show(expected)}`);
}

/** Runs one part; an exception in it is a failure of it, and the other parts still run. */
export async function part(name, run) {
  try {
    await run();
  } catch (error) {
    failures.push(`${name} stopped: ${error.stack ?? error}`);
  }
}

/** The call must fail; gives the error. */
export async function refused(what, call) {
  try {
    const answer = await call();
    failures.push(`${what} was not refused: ${show(answer)}`);
    return {};
  } catch (error) {
    passed += 1;
    return error;
  }
}

export function result() {
  return { passed, failures };
}
