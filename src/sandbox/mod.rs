//! The sandbox: Nango, Composio, Cloudflare, the gateway and every OAuth provider on loopback,
//! over one world with a virtual clock, a seed and a fault plan. The gateway and Cloudflare can
//! be the real Workers runtime instead ([`workerd`]); the world then keeps the books alone.
//!
//! It is a product feature and the judge of the code under test: its ledger decides whether
//! tokens were lost. Nothing in here asks the code under test, and nothing reads a wall clock
//! except [`live`].

mod cloudflare;
mod composio;
mod draw;
mod environment;
mod faults;
mod gateway;
mod http;
mod keys;
mod ledger;
pub mod live;
mod load;
mod nango;
mod provider;
mod script;
mod serve;
mod serving;
#[cfg(test)]
mod tests;
mod workerd;
mod world;

pub use self::composio::{ComposioSettings, Masking, Oauth2Import, UnknownQuery};
pub use self::faults::{FAULTS, Fault, FaultError, FaultNote};
pub use self::http::{Call, Reply, http_date};
pub use self::keys::{OauthClient, SandboxKeys};
pub use self::ledger::{Incident, LedgerSummary};
pub use self::live::LiveClock;
pub use self::load::{ReadCounts, ReadLoad};
pub use self::nango::{NangoSettings, NangoVersion, OutboundWebhook};
pub use self::provider::{CANARY, Party};
pub use self::script::{Script, ScriptError, TokenScript, TokenTwist, Twist};
pub use self::serve::{CrashSignal, Sandbox, SandboxUrls};
pub use self::workerd::{AlarmCounts, RuntimeUrls, Workerd, WorkerdError, worker_sources};
pub use self::world::{Answer, GatewayKind, Strike, TokenLife, World, WorldConfig, WorldOptions};
