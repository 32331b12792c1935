// Serves worker.mjs on the Workers runtime, its KV on disk, until it is told to stop.
import { Log, LogLevel, Miniflare } from "miniflare";

const [folder, secret] = process.argv.slice(2);
const runtime = new Miniflare({
  host: "127.0.0.1", port: 0, cf: false, logRequests: false, log: new Log(LogLevel.ERROR),
  telemetry: { enabled: false }, kvPersist: folder,
  modules: true, scriptPath: "worker.mjs", compatibilityDate: "2026-04-01",
  bindings: { HOOK_SECRET: secret }, kvNamespaces: ["TOKENS"],
});
console.log(String(await runtime.ready).replace(/\/$/, ""));
const stop = async () => { await runtime.dispose(); process.exit(0); };
process.on("SIGTERM", stop);
// Whoever started this is gone when standard input ends.
process.stdin.on("end", stop).resume();
