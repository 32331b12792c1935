// Usage: node run.mjs BINARY. Drives every call that cutover makes through the vendors' own clients
// against a served sandbox; prints what was found as JSON and fails loudly.
import { cloudflare } from './cloudflare.mjs';
import { ok, part, result } from './check.mjs';
import { composio } from './composio.mjs';
import { nango } from './nango.mjs';
import { Sandbox } from './sandbox.mjs';
import { unused } from './shapes.mjs';

const sandbox = await Sandbox.start(process.argv[2]);
try {
  await part('cloudflare', () => cloudflare(sandbox));
  await part('nango', () => nango(sandbox));
  await part('composio', () => composio(sandbox));
  ok('every shape of shapes.ts was held against an answer', unused().length === 0, unused());
} finally {
  sandbox.stop();
}
const found = result();
console.log(JSON.stringify(found));
found.failures.forEach((failure) => console.error(failure));
process.exitCode = found.failures.length === 0 ? 0 : 1;
