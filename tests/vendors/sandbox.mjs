// A served sandbox with a receiver of webhooks beside it.
import { spawn } from 'node:child_process';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { createInterface } from 'node:readline';

export class Sandbox {
  /** Starts `binary sandbox` and waits until it serves. */
  static async start(binary) {
    const sandbox = new Sandbox();
    sandbox.received = [];
    sandbox.waiting = [];
    sandbox.receiver = createServer((request, response) => {
      const chunks = [];
      request.on('data', (chunk) => chunks.push(chunk));
      request.on('end', () => {
        sandbox.received.push({ headers: request.headers, body: Buffer.concat(chunks).toString('utf8') });
        sandbox.waiting.splice(0).forEach((wake) => wake());
        response.end();
      });
    });
    sandbox.receiver.listen(0, '127.0.0.1');
    await once(sandbox.receiver, 'listening');
    sandbox.hook = `http://127.0.0.1:${sandbox.receiver.address().port}/hook`;
    const args = ['sandbox', '--print-env', '--shim-url', sandbox.hook];
    sandbox.child = spawn(binary, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    sandbox.env = {};
    const serving = once(createInterface(sandbox.child.stderr), 'line');
    const lines = createInterface(sandbox.child.stdout);
    lines.on('line', (line) => {
      const [, name, value] = /^export (\w+)='(.*)'$/.exec(line) ?? [];
      if (name) sandbox.env[name] = value;
    });
    const ended = once(sandbox.child, 'exit').then(([code]) => {
      throw new Error(`the sandbox ended with ${code} before it served`);
    });
    await Promise.race([serving, ended]);
    ended.catch(() => {});
    return sandbox;
  }

  url(of) {
    return this.env[`CUTOVER_${of}_URL`];
  }

  /** One of the sandbox's own routes. */
  async control(path, body) {
    const response = await fetch(`${this.url('GATEWAY')}/_sandbox/${path}`, {
      method: body === undefined ? 'GET' : 'POST',
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(`/_sandbox/${path}: ${JSON.stringify(answer)}`);
    return answer;
  }

  /** The first webhook that fits, among those that came and those that come. */
  async webhook(fits) {
    const deadline = Date.now() + 30_000;
    for (;;) {
      const found = this.received.find((hook) => fits(JSON.parse(hook.body)));
      if (found) return found;
      if (Date.now() > deadline) throw new Error('no such webhook came within 30 s');
      await Promise.race([
        new Promise((wake) => this.waiting.push(wake)),
        new Promise((wake) => setTimeout(wake, 1_000)),
      ]);
    }
  }

  stop() {
    this.child.kill();
    this.receiver.closeAllConnections();
    this.receiver.close();
  }
}

/** One step of a browser: the status, the page, and where it is sent. */
export async function browse(url) {
  const response = await fetch(url, { redirect: 'manual' });
  return { status: response.status, location: response.headers.get('location'), page: await response.text() };
}
