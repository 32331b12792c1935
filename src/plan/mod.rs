//! The plan: what happens to each triplet, in which wave, at what risk, time and cost.

use serde::{Deserialize, Serialize};

use crate::domain::time::Timestamp;
use crate::domain::triplet::Triplet;

/// How custody of one triplet moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// Bearer mirror during the soak, then the user consents at Composio.
    Reconsent,
    /// A long-lived secret, copied once and verified.
    Static,
    /// Stays with the gateway.
    Retain,
    /// A person must decide first; `apply` refuses.
    Blocked,
}

/// A saved plan. Its id is a digest of its content; it holds no secrets and is applied once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub plan_version: u32,
    /// `p-` and 12 hex digits.
    pub id: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub rows: Vec<PlanRow>,
    pub waves: Vec<Wave>,
}

/// What happens to one triplet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRow {
    pub triplet: Triplet,
    pub integration_key: String,
    pub connection_id: String,
    /// Composio toolkit slug, where one exists.
    pub toolkit: Option<String>,
    pub route: Route,
    pub reasons: Vec<String>,
    /// Scopes that the target's consent must grant.
    pub scopes: Vec<String>,
    /// `None` for rows that do not move.
    pub wave: Option<u32>,
}

/// Triplets that move together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// From 1.
    pub n: u32,
    pub triplets: Vec<Triplet>,
}
