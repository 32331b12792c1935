// The `cloudflare` SDK against the sandbox's KV, D1 and Durable Object namespaces.
import Cloudflare from 'cloudflare';
import { ok, refused, same } from './check.mjs';
import { contractShape, vendorShape } from './shapes.mjs';

async function collect(pages) {
  const all = [];
  for await (const item of pages) all.push(item);
  return all;
}

export async function cloudflare(sandbox) {
  const [base, account_id] = sandbox.env.CUTOVER_CLOUDFLARE_URL.split('/accounts/');
  const client = new Cloudflare({ baseURL: base, apiToken: sandbox.env.CUTOVER_CLOUDFLARE_TOKEN, maxRetries: 0 });
  const { CUTOVER_KV_SOURCE: source, CUTOVER_KV_TARGET: target, CUTOVER_D1: database } = sandbox.env;
  const kv = client.kv.namespaces;

  same('the token is active', vendorShape('cloudflare tokens.verify', await client.user.tokens.verify()).status, 'active');
  const namespaces = await collect(kv.list({ account_id }));
  namespaces.forEach((namespace) => vendorShape('cloudflare kv.namespace', namespace));
  same('both namespaces are there', namespaces.map((n) => n.id).sort(), [source, target].sort());

  // Keys, over several pages.
  const keys = await collect(kv.keys.list(source, { account_id, prefix: 'tokens:', limit: 10 }));
  keys.forEach((key) => vendorShape('cloudflare kv.key', key));
  ok('the cursor leads to every key once', keys.length > 10 && new Set(keys.map((k) => k.name)).size === keys.length);

  // One entry, with metadata.
  const at = { account_id, namespace_id: target };
  const key = 'tokens:acme:hubspot:a b/c';
  const value = JSON.stringify({ access_token: 'at' });
  // The SDK would send an object as one form field a member; KV wants one field of JSON.
  await kv.values.update(key, { ...at, value, metadata: JSON.stringify({ v: 1 }) });
  same('a value comes back as it was', await (await kv.values.get(key, at)).text(), value);
  same('and its metadata', await kv.metadata.get(key, at), { v: 1 });
  const gone = await refused('an absent key', () => kv.values.get('none', at));
  same('an absent key is 404', [gone.status, gone.errors?.[0]?.code], [404, 10009]);
  contractShape('cloudflare#/$defs/failure', gone.error);

  // Bulk.
  const puts = ['a', 'b'].map((n) => ({ key: `bulk:${n}`, value: n, metadata: { n }, expiration_ttl: 600 }));
  const put = await kv.keys.bulkUpdate(target, { account_id, body: puts });
  same('all were written', vendorShape('cloudflare kv.bulkUpdate', put).successful_key_count, 2);
  const got = await kv.keys.bulkGet(target, { account_id, keys: ['bulk:a', 'bulk:b', 'bulk:c'] });
  same('and are read', vendorShape('cloudflare kv.bulkGet', got).values, { 'bulk:a': 'a', 'bulk:b': 'b', 'bulk:c': null });
  const listed = await collect(kv.keys.list(target, { account_id, prefix: 'bulk:' }));
  same('with metadata', listed.map((k) => k.metadata), [{ n: 'a' }, { n: 'b' }]);
  ok('and expiry', listed.every((k) => Number.isInteger(k.expiration)));
  await kv.values.delete('bulk:a', at);
  same('a deleted key is gone', (await collect(kv.keys.list(target, { account_id, prefix: 'bulk:' }))).length, 1);

  // D1.
  const databases = await collect(client.d1.database.list({ account_id }));
  databases.forEach((d) => vendorShape('cloudflare d1.database', d));
  same('the database is listed', databases.map((d) => d.uuid), [database]);
  const sql = 'SELECT COUNT(*) AS n FROM kv_audit';
  const results = await collect(client.d1.database.query(database, { account_id, sql }));
  results.forEach((r) => vendorShape('cloudflare d1.result', r));
  ok('a query answers with rows', results[0]?.success === true && results[0].results.length === 1, results);

  // Durable Objects.
  const classes = await collect(client.durableObjects.namespaces.list({ account_id }));
  classes.forEach((c) => vendorShape('cloudflare durableObjects.namespace', c));
  const manager = classes.find((c) => c.class === 'TokenManager');
  const objects = await collect(client.durableObjects.namespaces.objects.list(manager.id, { account_id }));
  objects.forEach((o) => vendorShape('cloudflare durableObjects.object', o));
  ok('every triplet has an object', objects.length >= keys.length, objects.length);

  const stranger = new Cloudflare({ baseURL: base, apiToken: 'wrong', maxRetries: 0 });
  const refusedKey = await refused('a wrong token', () => stranger.kv.namespaces.list({ account_id }));
  contractShape('cloudflare#/$defs/failure', refusedKey.error);
}
