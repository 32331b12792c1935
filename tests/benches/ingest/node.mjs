// What somebody would write first: Node's http, an HMAC, one SQLite transaction a request.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";
import Database from "better-sqlite3";

const [file, key] = process.argv.slice(2);
const db = new Database(file);
db.pragma("journal_mode = WAL");
db.pragma("synchronous = FULL");
db.exec("CREATE TABLE intake (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, body BLOB NOT NULL)");
const insert = db.prepare("INSERT INTO intake (at, body) VALUES (?, ?)");

const server = createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const body = Buffer.concat(parts);
    const expected = createHmac("sha256", key).update(body).digest();
    const given = Buffer.from(request.headers["x-nango-hmac-sha256"] ?? "", "hex");
    if (given.length !== expected.length || !timingSafeEqual(given, expected)) {
      response.writeHead(401).end();
      return;
    }
    insert.run(Date.now(), body);
    response.writeHead(200, { "content-type": "application/json" }).end('{"status":"accepted"}');
  });
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
