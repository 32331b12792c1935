//! The integration inventory: which connection feeds which triplets.

use serde::{Deserialize, Serialize};

use crate::domain::triplet::{Part, Triplet};

/// One Nango connection and the triplets that it feeds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    pub tenant: Part,
    /// Nango's provider config key, such as `google`.
    pub integration_key: String,
    /// Nango's id of the connection. Conventional (`{tenant}__{key}__{account}`) unless the source said otherwise.
    pub connection_id: String,
    /// V5 providers, one to many, sorted.
    pub providers: Vec<Part>,
    pub account: Part,
    /// Nango's auth mode where the source gave one, else the catalogue decides.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub auth_mode: Option<String>,
}

impl Row {
    /// The triplets that this connection feeds, in the order of its providers.
    pub fn triplets(&self) -> impl Iterator<Item = Triplet> + '_ {
        self.providers.iter().map(|p| Triplet::new(self.tenant.clone(), p.clone(), self.account.clone()))
    }
}

/// Rows in canonical order: by tenant, integration key, account, connection id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub rows: Vec<Row>,
}
