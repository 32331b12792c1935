// `@composio/client` and `@composio/core` against the sandbox's Composio.
import { Composio } from '@composio/client';
import { Composio as Core } from '@composio/core';
import { ok, refused, same } from './check.mjs';
import { browse } from './sandbox.mjs';
import { contractShape, vendorShape } from './shapes.mjs';

const TOOLKIT = 'hubspot';
const WHOAMI = 'https://api.hubapi.com/account-info/v3/details';

export async function composio(sandbox) {
  const options = { baseURL: sandbox.url('COMPOSIO'), apiKey: sandbox.env.CUTOVER_COMPOSIO_KEY, maxRetries: 0 };
  const client = new Composio(options);

  // Toolkits and auth configs.
  const toolkits = vendorShape('composio toolkits.list', await client.toolkits.list({ limit: 5 }));
  ok('a page of toolkits has a cursor', toolkits.items.length === 5 && typeof toolkits.next_cursor === 'string');
  const toolkit = vendorShape('composio toolkits.retrieve', await client.toolkits.retrieve(TOOLKIT));
  same('a toolkit says how to ask who it is', toolkit.get_current_user_endpoint, WHOAMI);
  const create = (name, scheme, credentials) =>
    client.authConfigs.create({
      toolkit: { slug: TOOLKIT },
      auth_config: { type: 'use_custom_auth', name, authScheme: scheme, credentials },
    });
  const bearer = vendorShape('composio authConfigs.create', await create('mirror', 'BEARER_TOKEN', {}));
  const own = { client_id: 'ci', client_secret: 'cs-secret', scopes: ['oauth'] };
  const oauth = vendorShape('composio authConfigs.create', await create('final', 'OAUTH2', own));
  const config = await client.authConfigs.retrieve(oauth.auth_config.id);
  vendorShape('composio authConfigs.retrieve', config);
  same('a client id can be read', config.credentials.client_id, 'ci');
  ok('a client secret cannot', !JSON.stringify(config).includes('cs-secret'));
  vendorShape('composio authConfigs.list', await client.authConfigs.list({ toolkit_slug: TOOLKIT }));
  const update = { type: 'custom', credentials: { scopes: ['oauth', 'crm.objects.contacts.read'] } };
  vendorShape('composio authConfigs.update', await client.authConfigs.update(oauth.auth_config.id, update));
  for (const status of ['DISABLED', 'ENABLED']) {
    const answer = await client.authConfigs.updateStatus(status, { nanoid: oauth.auth_config.id });
    vendorShape('composio authConfigs.updateStatus', answer);
  }

  // A bearer mirror: create, read, push, switch, proxy, delete.
  const account = (alias, val) => ({
    auth_config: { id: bearer.auth_config.id },
    connection: { user_id: 'acme', alias, state: { authScheme: 'BEARER_TOKEN', val } },
  });
  const secret = 'pat-na1-very-secret';
  const made = await client.connectedAccounts.create(account('m-1', { status: 'ACTIVE', token: secret }));
  vendorShape('composio connectedAccounts.create', made);
  const shown = vendorShape('composio connectedAccounts.retrieve', await client.connectedAccounts.retrieve(made.id));
  same('a bearer account is ACTIVE at once', [shown.status, shown.alias, shown.user_id], ['ACTIVE', 'm-1', 'acme']);
  const list = await client.connectedAccounts.list({ user_ids: ['acme'], statuses: ['ACTIVE'], toolkit_slugs: [TOOLKIT] });
  same('the list finds it', vendorShape('composio connectedAccounts.list', list).items.map((a) => a.id), [made.id]);
  ok('no answer shows the token', ![made, shown, list].some((answer) => JSON.stringify(answer).includes(secret)));
  const push = (token) => ({ connection: { state: { authScheme: 'BEARER_TOKEN', val: { token } } } });
  vendorShape('composio connectedAccounts.patch', await client.connectedAccounts.patch(made.id, push('pat-2')));
  const taken = await refused('a taken alias', () =>
    client.connectedAccounts.create(account('m-1', { status: 'ACTIVE', token: 'x' })),
  );
  same('it is 409', taken.status, 409);
  contractShape('composio#/$defs/error', taken.error?.error ? taken.error : { error: taken.error });
  const readBack = await refused('a value that was read back', () => client.connectedAccounts.patch(made.id, push('REDACTED')));
  same('a read-back value is 400', readBack.status, 400);
  await sandbox.control('script', { api: 'composio', answer: 'lease-held' });
  const held = await refused('a held account', () => client.connectedAccounts.patch(made.id, push('pat-3')));
  same('a held account is 409', held.status, 409);
  await sandbox.control('script', { api: 'composio', method: 'POST', answer: 'fail-after' });
  const lost = await refused('an answer that is lost', () =>
    client.connectedAccounts.create(account('m-lost', { status: 'ACTIVE', token: 'x' })),
  );
  same('the lost answer is a 500', lost.status, 500);
  const found = (await client.connectedAccounts.list({ user_ids: ['acme'] })).items.filter((a) => a.alias === 'm-lost');
  same('and what it was for has happened', found.length, 1);
  for (const enabled of [false, true]) {
    vendorShape('composio connectedAccounts.updateStatus', await client.connectedAccounts.updateStatus(made.id, { enabled }));
  }
  const call = { connected_account_id: made.id, endpoint: WHOAMI, method: 'GET' };
  const proxied = vendorShape('composio tools.proxy', await client.tools.proxy(call));
  same('the proxy shows the provider\'s refusal inside', proxied.status, 401);
  vendorShape('composio connectedAccounts.delete', await client.connectedAccounts.delete(made.id));
  const gone = await refused('a deleted account', () => client.connectedAccounts.retrieve(made.id));
  same('it is 404', gone.status, 404);

  // Refusals of the transport.
  const stranger = await refused('a wrong key', () => new Composio({ ...options, apiKey: 'ak_wrong' }).authConfigs.list());
  same('a wrong key is 401', stranger.status, 401);
  const { key } = await sandbox.control('keys', { api: 'composio', areas: ['auth_configs:read'] });
  const reader = new Composio({ ...options, apiKey: key });
  await reader.authConfigs.list();
  const outside = await refused('an area outside the key', () => reader.connectedAccounts.list());
  same('it is 403', outside.status, 403);
  await sandbox.control('script', { api: 'composio', answer: 'rate-limited' });
  const limited = await fetch(`${options.baseURL}/api/v3.1/toolkits`, { headers: { 'x-api-key': options.apiKey } });
  same('the limiter is 429 with Retry-After', [limited.status, limited.headers.get('retry-after')], [429, '1']);
  contractShape('composio#/$defs/limited', await limited.json());

  await consent(sandbox, client, oauth.auth_config.id);
}

/** A link, the browser, the account's life, its end, and the webhook that tells of it. */
async function consent(sandbox, client, config) {
  const wanted = { webhook_url: sandbox.hook, enabled_events: ['composio.connected_account.expired'] };
  const subscription = await client.webhookSubscriptions.create(wanted);
  vendorShape('composio webhookSubscriptions.create', subscription);
  const second = await refused('a second subscription', () => client.webhookSubscriptions.create(wanted));
  same('a second subscription is 409', second.status, 409);
  vendorShape('composio webhookSubscriptions.retrieve', await client.webhookSubscriptions.retrieve(subscription.id));
  vendorShape('composio webhookSubscriptions.list', await client.webhookSubscriptions.list());
  vendorShape('composio webhookSubscriptions.listEventTypes', await client.webhookSubscriptions.listEventTypes());
  const { secret } = vendorShape(
    'composio webhookSubscriptions.rotateSecret',
    await client.webhookSubscriptions.rotateSecret(subscription.id),
  );
  const both = ['composio.connected_account.expired', 'composio.trigger.disabled'];
  vendorShape('composio webhookSubscriptions.update', await client.webhookSubscriptions.update(subscription.id, { enabled_events: both }));

  const link = await client.link.create({
    auth_config_id: config,
    user_id: 'kahuna',
    alias: 'final-1',
    callback_url: 'https://app.example/cb?flow=7',
  });
  vendorShape('composio link.create', link);
  const opened = await browse(link.redirect_url);
  const back = new URL(opened.location);
  same(
    'the browser comes back with the account',
    [back.searchParams.get('flow'), back.searchParams.get('status'), back.searchParams.get('connected_account_id')],
    ['7', 'success', link.connected_account_id],
  );
  const account = await client.connectedAccounts.retrieve(link.connected_account_id);
  same('the account is ACTIVE', vendorShape('composio connectedAccounts.retrieve', account).status, 'ACTIVE');
  const whoami = { connected_account_id: account.id, endpoint: WHOAMI, method: 'GET' };
  same('and executes', (await client.tools.proxy(whoami)).status, 200);

  const core = new Core({ apiKey: client.apiKey, baseURL: client.baseURL, allowTracking: false, disableVersionCheck: true });
  const viaCore = await core.connectedAccounts.list({ userIds: ['kahuna'] });
  ok('@composio/core lists it', viaCore.items.some((a) => a.id === account.id && a.status === 'ACTIVE'));
  same('@composio/core reads it', (await core.connectedAccounts.get(account.id)).status, 'ACTIVE');
  ok('@composio/core lists auth configs', (await core.authConfigs.list({ toolkit: TOOLKIT })).items.length >= 2);

  // The provider refuses every refresh from now on, so the account expires.
  await sandbox.control('script', { integration: TOOLKIT, token_answer: 'invalid-grant', times: 1000 });
  await sandbox.control('advance', { ms: 3_600_000 });
  const hook = await sandbox.webhook((b) => b.type === both[0] && b.data.id === account.id);
  contractShape('composio#/$defs/expired', JSON.parse(hook.body));
  const verify = (body, headers) =>
    core.triggers.verifyWebhook({
      payload: body,
      id: headers['webhook-id'],
      timestamp: headers['webhook-timestamp'],
      signature: headers['webhook-signature'],
      secret,
      // The world's clock was moved an hour ahead of this one.
      tolerance: 7_200,
    });
  same('@composio/core accepts the signature', (await verify(hook.body, hook.headers)).version, 'V3');
  await refused('an altered body', () => verify(hook.body.replace('EXPIRED', 'ACTIVE'), hook.headers));
  const signature = hook.headers['webhook-signature'];
  const altered = signature.replace(/.(.{4})$/, (all, end) => (all[0] === 'A' ? 'B' : 'A') + end);
  await refused('an altered signature', () => verify(hook.body, { ...hook.headers, 'webhook-signature': altered }));
  await refused('another id', () => verify(hook.body, { ...hook.headers, 'webhook-id': 'msg_other' }));
  same('the account has expired', (await client.connectedAccounts.retrieve(account.id)).status, 'EXPIRED');

  const dead = await refused('revoking what is not ACTIVE', () => client.connectedAccounts.revoke(account.id));
  same('it is 409', dead.status, 409);
  const other = await client.link.create({ auth_config_id: config, user_id: 'kahuna', alias: 'final-2' });
  await browse(other.redirect_url);
  const revoked = await client.connectedAccounts.revoke(other.connected_account_id);
  vendorShape('composio connectedAccounts.revoke', revoked);
  same('a revoked account says so', revoked.connected_account.status, 'REVOKED');
  vendorShape('composio webhookSubscriptions.delete', await client.webhookSubscriptions.delete(subscription.id));
  vendorShape('composio authConfigs.delete', await client.authConfigs.delete(config));
}
