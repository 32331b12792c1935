// `@nangohq/node` against the sandbox's Nango.
import { Nango } from '@nangohq/node';
import { ok, refused, same } from './check.mjs';
import { browse } from './sandbox.mjs';
import { contractShape, vendorShape } from './shapes.mjs';

const KEY = 'hubspot';

export async function nango(sandbox) {
  const host = sandbox.url('NANGO');
  const apiKey = sandbox.env.CUTOVER_NANGO_KEY;
  const webhookSigningKey = sandbox.env.CUTOVER_NANGO_WEBHOOK_KEY;
  const client = new Nango({ host, apiKey, webhookSigningKey });
  const raw = (path, init = {}) =>
    fetch(`${host}${path}`, {
      ...init,
      headers: { authorization: `Bearer ${apiKey}`, 'content-type': 'application/json', ...init.headers },
    });

  // Reading.
  const all = vendorShape('nango listConnections', await client.listConnections());
  const page = await client.listConnections({ limit: 3 });
  same('a page holds as many as asked for', page.connections.length, 3);
  const one = all.connections.find((c) => c.provider_config_key === KEY);
  const full = await client.getConnection(KEY, one.connection_id, false, true);
  vendorShape('nango getConnection', full);
  ok('the refresh token comes when asked for', typeof full.credentials.refresh_token === 'string');
  const shown = vendorShape('nango getConnection', await client.getConnection(KEY, one.connection_id));
  ok('and does not otherwise', !JSON.stringify(shown).includes('refresh_token'));
  same('getToken gives the same token', await client.getToken(KEY, one.connection_id), shown.credentials.access_token);
  const forced = await client.getConnection(KEY, one.connection_id, true);
  ok('force_refresh rotates', forced.credentials.access_token !== shown.credentials.access_token);
  const missing = await refused('an unknown connection', () => client.getConnection(KEY, 'nobody'));
  same('it is 404', missing.response?.status, 404);
  contractShape('nango#/$defs/error', missing.response?.data);

  // Integrations.
  vendorShape('nango listIntegrations', await client.listIntegrations());
  vendorShape('nango getIntegration', await client.getIntegration({ uniqueKey: KEY }, { include: ['credentials', 'webhook'] }));
  const app = { type: 'OAUTH2', client_id: 'ci', client_secret: 'cs', scopes: 'a,b' };
  const made = await client.createIntegration({ provider: KEY, unique_key: 'second', credentials: app });
  vendorShape('nango createIntegration', made);
  const renamed = await client.updateIntegration({ uniqueKey: 'second' }, { display_name: 'Second' });
  same('an integration can be renamed', vendorShape('nango updateIntegration', renamed).data.display_name, 'Second');
  const twice = await refused('a taken key', () => client.createIntegration({ provider: KEY, unique_key: 'second' }));
  contractShape('nango#/$defs/validationError', twice.response?.data);
  same('an integration can be deleted', (await client.deleteIntegration('second')).status, 200);

  // Writing. The SDK has no import.
  const credentials = { type: 'OAUTH2', access_token: 'at-1', refresh_token: 'rt-1', expires_at: '2030-01-01T00:00:00Z' };
  const body = { provider_config_key: KEY, connection_id: 'brought', credentials, tags: { end_user_id: 'acme' } };
  const imported = await raw('/connections', { method: 'POST', body: JSON.stringify(body) });
  same('an import is 201', imported.status, 201);
  vendorShape('nango importConnection', await imported.json());
  const target = { connectionId: 'brought', provider_config_key: KEY };
  vendorShape('nango patchConnection', await client.patchConnection(target, { tags: { team: 'blue' } }));
  same('the tags are replaced', (await client.getConnection(KEY, 'brought')).tags, { team: 'blue' });
  same('metadata is set', (await client.setMetadata(KEY, 'brought', { a: 1 })).status, 201);
  same('and merged', (await client.updateMetadata(KEY, 'brought', { b: 2 })).status, 200);
  same('to both', (await client.getConnection(KEY, 'brought')).metadata, { a: 1, b: 2 });
  vendorShape('nango deleteConnection', (await client.deleteConnection(KEY, 'brought')).data);
  const gone = await refused('deleting again', () => client.deleteConnection(KEY, 'brought'));
  same('deleting again is 400', gone.response?.status, 400);

  // Consent in a browser, through the sandbox's provider.
  const session = await client.createConnectSession({
    end_user: { id: 'acme__hubspot__main', email: 'a@example.com' },
    allowed_integrations: [KEY],
  });
  const { token, connect_link: link } = vendorShape('nango createConnectSession', session).data;
  ok('the connect link opens a page', (await browse(link)).page.includes(`/oauth/connect/${KEY}`));
  const consent = async (token) => {
    const begun = await browse(`${host}/oauth/connect/${KEY}?connect_session_token=${token}`);
    same('the browser is sent to the provider', begun.status, 302);
    const agreed = await browse(begun.location);
    same('and back', agreed.location?.startsWith(`${host}/oauth/callback?code=`), true);
    return browse(agreed.location);
  };
  same('the callback succeeds', (await consent(token)).status, 200);
  const creation = await sandbox.webhook((b) => b.operation === 'creation' && b.endUser?.endUserId === 'acme__hubspot__main');
  const { connectionId } = JSON.parse(creation.body);
  const consented = vendorShape('nango getConnection', await client.getConnection(KEY, connectionId));
  same('the end user is stored', consented.tags.end_user_id, 'acme__hubspot__main');
  const again = await client.createReconnectSession({ connection_id: connectionId, integration_id: KEY, tags: { end_user_id: 'x' } });
  same('a reconnect succeeds', (await consent(vendorShape('nango createReconnectSession', again).data.token)).status, 200);
  const override = await sandbox.webhook((b) => b.operation === 'override' && b.connectionId === connectionId);
  same('a used state is refused', (await browse(`${host}/oauth/callback?code=x&state=y`)).status, 400);

  // Webhooks, through the SDK's own verification.
  await sandbox.control('script', { integration: KEY, token_answer: 'invalid-grant' });
  const failed = await refused('a dead grant', () => client.getConnection(KEY, connectionId, true));
  contractShape('nango#/$defs/refreshError', failed.response?.data);
  const refresh = await sandbox.webhook((b) => b.operation === 'refresh' && b.connectionId === connectionId);
  for (const hook of [creation, override, refresh]) {
    vendorShape('nango webhook', JSON.parse(hook.body));
    ok('the SDK accepts the signature', client.verifyIncomingWebhookRequest(hook.body, hook.headers));
    ok('and the legacy one', client.verifyWebhookSignature(hook.headers['x-nango-signature'], JSON.parse(hook.body)));
    const altered = hook.body.replace('"auth"', '"auht"');
    ok('it refuses an altered body', altered !== hook.body && !client.verifyIncomingWebhookRequest(altered, hook.headers));
    const signature = hook.headers['x-nango-hmac-sha256'];
    const flipped = (signature[0] === '0' ? '1' : '0') + signature.slice(1);
    ok('and an altered signature', !client.verifyIncomingWebhookRequest(hook.body, { 'x-nango-hmac-sha256': flipped }));
    const other = new Nango({ host, apiKey, webhookSigningKey: '00000000-0000-4000-8000-000000000000' });
    ok('and another key', !other.verifyIncomingWebhookRequest(hook.body, hook.headers));
  }

  // What later servers tell: a recovery, and a deletion.
  await sandbox.control('settings', { nango: { version: '0.71.6', on_connection_deletion: true } });
  await client.getConnection(KEY, connectionId, true);
  const recovery = await sandbox.webhook((b) => b.operation === 'refresh' && b.success === true);
  same('a recovery is told', JSON.parse(recovery.body).connectionId, connectionId);

  // Keys with few scopes, and the limiter.
  const { key } = await sandbox.control('keys', { api: 'nango', scopes: ['connections:list', 'connections:read'] });
  const reader = new Nango({ host, apiKey: key });
  same('a key that may only read sees no credential', (await reader.getConnection(KEY, connectionId)).credentials, {});
  const forbidden = await refused('a refresh by it', () => reader.getConnection(KEY, connectionId, true));
  same('it is 403', forbidden.response?.status, 403);
  await sandbox.control('script', { api: 'nango', answer: 'rate-limited' });
  const limited = await refused('a call over the limit', () => client.listConnections());
  contractShape('nango#/$defs/limited', limited.response?.data);
  await client.deleteConnection(KEY, connectionId);
  const deletion = await sandbox.webhook((b) => b.operation === 'deletion');
  ok('a deletion is told', client.verifyIncomingWebhookRequest(deletion.body, deletion.headers));
}
