// What the vendors' own packages say each answer is made of. Composio's and Cloudflare's types are
// generated from their OpenAPI documents, which the packages carry in no other form.
import type {
  ApiKeyCredentials,
  BasicApiCredentials,
  DeletePublicConnection,
  GetPublicConnection,
  NangoAuthWebhookBody,
  OAuth2Credentials,
  PatchPublicConnection,
  PostPublicConnection,
} from '@nangohq/types';
import type { Nango } from '@nangohq/node';
import type { Composio } from '@composio/client';
import type Cloudflare from 'cloudflare';
import type { Key, KeyBulkGetResponse, KeyBulkUpdateResponse } from 'cloudflare/resources/kv/namespaces/keys.js';
import type { Namespace } from 'cloudflare/resources/kv/namespaces/namespaces.js';
import type { DatabaseListResponse, QueryResult } from 'cloudflare/resources/d1/database.js';
import type { DurableObject, Namespace as ObjectNamespace } from 'cloudflare/resources/durable-objects/namespaces/index.js';

// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Answer<F extends (...args: any[]) => unknown> = Awaited<ReturnType<F>>;

// Over the wire a date is a text; the package says so with a type that no schema can express.
type Wire<C> = Omit<C, 'expires_at'> & { expires_at?: string };
type Credentials = Wire<OAuth2Credentials> | ApiKeyCredentials | BasicApiCredentials | Record<string, never>;
type WithCredentials<C> = Omit<C, 'credentials'> & { credentials: Credentials };

export interface Shapes {
  'nango listConnections': Answer<Nango['listConnections']>;
  'nango getConnection': WithCredentials<GetPublicConnection['Success']>;
  'nango importConnection': WithCredentials<PostPublicConnection['Success']>;
  'nango patchConnection': PatchPublicConnection['Success'];
  'nango deleteConnection': DeletePublicConnection['Success'];
  'nango listIntegrations': Answer<Nango['listIntegrations']>;
  'nango getIntegration': Answer<Nango['getIntegration']>;
  'nango createIntegration': Answer<Nango['createIntegration']>;
  'nango updateIntegration': Answer<Nango['updateIntegration']>;
  'nango createConnectSession': Answer<Nango['createConnectSession']>;
  'nango createReconnectSession': Answer<Nango['createReconnectSession']>;
  'nango webhook': NangoAuthWebhookBody;

  'composio authConfigs.create': Answer<Composio['authConfigs']['create']>;
  'composio authConfigs.retrieve': Answer<Composio['authConfigs']['retrieve']>;
  'composio authConfigs.list': Answer<Composio['authConfigs']['list']>;
  'composio authConfigs.update': Answer<Composio['authConfigs']['update']>;
  'composio authConfigs.updateStatus': Answer<Composio['authConfigs']['updateStatus']>;
  'composio authConfigs.delete': Answer<Composio['authConfigs']['delete']>;
  'composio connectedAccounts.create': Answer<Composio['connectedAccounts']['create']>;
  'composio connectedAccounts.retrieve': Answer<Composio['connectedAccounts']['retrieve']>;
  'composio connectedAccounts.list': Answer<Composio['connectedAccounts']['list']>;
  'composio connectedAccounts.patch': Answer<Composio['connectedAccounts']['patch']>;
  'composio connectedAccounts.updateStatus': Answer<Composio['connectedAccounts']['updateStatus']>;
  'composio connectedAccounts.revoke': Answer<Composio['connectedAccounts']['revoke']>;
  'composio connectedAccounts.delete': Answer<Composio['connectedAccounts']['delete']>;
  'composio link.create': Answer<Composio['link']['create']>;
  'composio toolkits.list': Answer<Composio['toolkits']['list']>;
  'composio toolkits.retrieve': Answer<Composio['toolkits']['retrieve']>;
  'composio tools.proxy': Answer<Composio['tools']['proxy']>;
  'composio webhookSubscriptions.create': Answer<Composio['webhookSubscriptions']['create']>;
  'composio webhookSubscriptions.retrieve': Answer<Composio['webhookSubscriptions']['retrieve']>;
  'composio webhookSubscriptions.list': Answer<Composio['webhookSubscriptions']['list']>;
  'composio webhookSubscriptions.update': Answer<Composio['webhookSubscriptions']['update']>;
  'composio webhookSubscriptions.rotateSecret': Answer<Composio['webhookSubscriptions']['rotateSecret']>;
  'composio webhookSubscriptions.listEventTypes': Answer<Composio['webhookSubscriptions']['listEventTypes']>;
  'composio webhookSubscriptions.delete': Answer<Composio['webhookSubscriptions']['delete']>;

  'cloudflare kv.namespace': Namespace;
  'cloudflare kv.key': Key;
  'cloudflare kv.bulkGet': KeyBulkGetResponse;
  'cloudflare kv.bulkUpdate': KeyBulkUpdateResponse;
  'cloudflare d1.database': DatabaseListResponse;
  'cloudflare d1.result': QueryResult;
  'cloudflare durableObjects.namespace': ObjectNamespace;
  'cloudflare durableObjects.object': DurableObject;
  'cloudflare tokens.verify': Answer<Cloudflare['user']['tokens']['verify']>;
}
