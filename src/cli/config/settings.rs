//! Everything that can be set, in one table.

/// One thing that can be set.
#[derive(Debug)]
pub(super) struct Setting {
    /// In the environment; a secret also as `{variable}_FILE`.
    pub variable: &'static str,
    /// Table and key in the file; a secret only as `{key}_file`.
    pub table: &'static str,
    pub key: &'static str,
    pub kind: Kind,
    pub default: Option<&'static str>,
    /// What it is and where to find it.
    pub what: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Url,
    Secret,
    /// Hashes of admin keys. What is no hash may be a key, so none of it is ever shown.
    Hashes,
}

impl Setting {
    pub fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }

    pub fn file_key(&self) -> String {
        if self.is_secret() { format!("{}_file", self.key) } else { self.key.to_owned() }
    }
}

macro_rules! settings {
    ($($id:ident: $variable:literal, $table:literal, $key:literal, $kind:ident, $default:expr, $what:literal;)*) => {
        $(pub(super) static $id: Setting = Setting {
            variable: $variable, table: $table, key: $key, kind: Kind::$kind, default: $default, what: $what,
        };)*
        /// In the order in which they are shown.
        pub(super) static ALL: &[&Setting] = &[$(&$id),*];
    };
}

settings! {
    NANGO_URL: "CUTOVER_NANGO_URL", "nango", "url", Url, Some("https://api.nango.dev"),
        "Nango's address";
    NANGO_KEY: "CUTOVER_NANGO_KEY", "nango", "key", Secret, None,
        "the secret key of the environment at Nango (Environment Settings)";
    NANGO_VERIFY_KEY: "CUTOVER_NANGO_VERIFY_KEY", "nango", "verify_key", Secret, None,
        "a key of the environment at Nango with `environment:connections:list` alone, for `cutover verify`; \
         without it that lists with the main key";
    NANGO_WEBHOOK_KEY: "CUTOVER_NANGO_WEBHOOK_KEY", "nango", "webhook_key", Secret, None,
        "the webhook signing key of the environment at Nango, during a rotation the new one and the old one with \
         a space between; without it webhooks are refused";
    NANGO_LEGACY: "CUTOVER_NANGO_LEGACY_SIGNATURE", "nango", "legacy_signature", Text, Some("refuse"),
        "`accept` where webhooks come with Nango's legacy signature only, which is open to length extension";
    COMPOSIO_URL: "CUTOVER_COMPOSIO_URL", "composio", "url", Url, Some("https://backend.composio.dev"),
        "Composio's address, without `/api/v3.1`";
    COMPOSIO_KEY: "CUTOVER_COMPOSIO_KEY", "composio", "key", Secret, None,
        "the project key at Composio (`ak_…`)";
    COMPOSIO_WEBHOOK_KEY: "CUTOVER_COMPOSIO_WEBHOOK_KEY", "composio", "webhook_key", Secret, None,
        "the secret of the webhook subscription at Composio, one or two as above; without it webhooks are refused";
    CLOUDFLARE_URL: "CUTOVER_CLOUDFLARE_URL", "cloudflare", "url", Url, None,
        "the account's address; by default that of CUTOVER_CLOUDFLARE_ACCOUNT at api.cloudflare.com";
    CLOUDFLARE_ACCOUNT: "CUTOVER_CLOUDFLARE_ACCOUNT", "cloudflare", "account", Text, None,
        "the account id at Cloudflare (32 hex digits)";
    CLOUDFLARE_TOKEN: "CUTOVER_CLOUDFLARE_TOKEN", "cloudflare", "token", Secret, None,
        "an API token that may write Workers KV and D1";
    KV_SOURCE: "CUTOVER_KV_SOURCE", "cloudflare", "kv_source", Text, None,
        "the id of the KV namespace that the gateway reads today";
    KV_TARGET: "CUTOVER_KV_TARGET", "cloudflare", "kv_target", Text, None,
        "the id of the KV namespace of the new custody";
    D1: "CUTOVER_D1", "cloudflare", "d1", Text, None,
        "the id of the D1 database with `kv_audit`";
    GATEWAY_URL: "CUTOVER_GATEWAY_URL", "gateway", "url", Url, None,
        "the gateway's address";
    GATEWAY_ADMIN_KEY: "CUTOVER_GATEWAY_ADMIN_KEY", "gateway", "admin_key", Secret, None,
        "the key of the gateway's admin routes";
    GATEWAY_KEY: "CUTOVER_GATEWAY_KEY", "gateway", "key", Secret, None,
        "the key of the gateway's hot path";
    PROVIDER_URL: "CUTOVER_PROVIDER_URL", "provider", "url", Url, None,
        "a sandbox that stands in for every provider; leave it out to reach the real ones";
    SHIM_ADMIN_KEYS: "CUTOVER_SHIM_ADMIN_KEYS", "shim", "admin_keys", Hashes, None,
        "hashes of the keys of the shim's admin routes, `sha256:…`, with a space between; \
         `cutover shim --new-admin-key` makes one";
    SHIM_ADMIN_KEY: "CUTOVER_SHIM_ADMIN_KEY", "shim", "admin_key", Secret, None,
        "the admin key with which `cutover soak --shim` asks";
    ALERT_WEBHOOK: "CUTOVER_ALERT_WEBHOOK", "alert", "webhook", Secret, None,
        "an incoming webhook (Slack, or what takes the same) that alerts are sent to";
    ALERT_QUIET: "CUTOVER_ALERT_QUIET_HOURS", "alert", "quiet_hours", Text, None,
        "hours in which only what is urgent is sent, `22:00-07:00` (UTC)";
}
