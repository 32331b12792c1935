// JSON schemas made from the vendors' types and from `schemas/`, and answers held against them.
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import Ajv from 'ajv';
import addFormats from 'ajv-formats';
import * as TJS from 'typescript-json-schema';
import { ok } from './check.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const cache = join(here, 'vendor-schemas.json');

function vendorSchemas() {
  if (existsSync(cache)) return JSON.parse(readFileSync(cache, 'utf8'));
  const program = TJS.programFromConfig(join(here, 'tsconfig.json'));
  // Fields that a vendor's type does not name are an error unless the type leaves room for them.
  const settings = { required: true, noExtraProps: true, ignoreErrors: true };
  const schema = TJS.generateSchema(program, 'Shapes', settings);
  if (!schema) throw new Error("no schema could be made from the vendors' types");
  for (const [name, definition] of Object.entries(schema.definitions)) {
    if (name !== 'Record<string,never>') openMaps(definition);
  }
  writeFileSync(cache, JSON.stringify(schema));
  return schema;
}

/**
 * A map whose keys are of a type that no schema can express (texts in lower case, say) comes out as
 * an object with no fields at all. It takes any.
 */
function openMaps(schema) {
  if (schema === null || typeof schema !== 'object') return;
  if (schema.type === 'object' && !schema.properties && schema.additionalProperties === false) {
    delete schema.additionalProperties;
  }
  Object.values(schema).forEach(openMaps);
}

const ajv = addFormats(new Ajv({ allErrors: true, strict: false, allowUnionTypes: true }));
const vendors = vendorSchemas();
ajv.addSchema(vendors, 'vendors');
const contractFolder = join(here, 'schemas');
for (const name of readdirSync(contractFolder)) {
  ajv.addSchema(JSON.parse(readFileSync(join(contractFolder, name), 'utf8')), name.replace('.json', ''));
}
const seen = new Set();

function held(what, ref, value) {
  const validate = ajv.getSchema(ref);
  if (!validate) throw new Error(`no schema ${ref}`);
  seen.add(ref);
  const fits = validate(value);
  const errors = (validate.errors ?? []).slice(0, 4).map((e) => `${e.instancePath} ${e.message} ${JSON.stringify(e.params)}`);
  ok(`${what} has the shape of ${ref}`, fits, errors);
  return value;
}

function dropNulls(map) {
  for (const key of Object.keys(map)) if (map[key] === null) delete map[key];
}

// Fields of Composio's published document that its newest package does not have yet, and one case
// that Cloudflare's package forgot.
const NEWER = {
  'composio connectedAccounts.retrieve': (account) => delete account.authScheme,
  'composio connectedAccounts.list': (page) => page.items.forEach((account) => delete account.authScheme),
  // An absent key is null, which Cloudflare's own type leaves out.
  'cloudflare kv.bulkGet': (answer) => dropNulls(answer.values),
  'composio authConfigs.delete': (answer) => ['success', 'message'].forEach((name) => delete answer[name]),
};

/** Holds an answer against the vendor's own type of it. */
export function vendorShape(name, value) {
  if (!(name in vendors.properties)) throw new Error(`shapes.ts has no ${name}`);
  const known = JSON.parse(JSON.stringify(value));
  NEWER[name]?.(known);
  held(name, `vendors#/properties/${encodeURIComponent(name)}`, known);
  return value;
}

/** Holds an answer against a schema of `schemas/`, such as `nango#/$defs/error`. */
export function contractShape(name, value) {
  return held(name, name, value);
}

/** The vendors' shapes that nothing was held against. */
export function unused() {
  return Object.keys(vendors.properties).filter((name) => !seen.has(`vendors#/properties/${encodeURIComponent(name)}`));
}
