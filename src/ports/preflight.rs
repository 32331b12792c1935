//! What only an assessment asks. Nothing here touches a token, and nothing durable is left behind.

use std::future::Future;

use super::{ApiResult, KvRead, SourceRead, TargetRead};

/// A key at Nango, asked what it may do.
pub trait SourceRights: SourceRead {
    /// Whether the key may read credentials, which is what makes Nango refresh.
    ///
    /// Asks for those of a connection that does not exist. The right is looked at before the
    /// connection is (Nango contract §1.2, §1.3), so nothing is refreshed whatever the answer.
    fn may_read_credentials(&self) -> impl Future<Output = ApiResult<bool>> + Send;

    /// Whether the key may open Connect sessions. Sends a request that names nobody, which Nango
    /// refuses after it looked at the right.
    fn may_open_sessions(&self) -> impl Future<Output = ApiResult<bool>> + Send;

    /// Opens a Connect session and closes it again. Nobody learns its link.
    fn try_session(&self) -> impl Future<Output = ApiResult<()>> + Send;
}

/// What Composio can do with a toolkit.
pub trait TargetAbilities: TargetRead {
    /// The ways to authenticate that a toolkit offers, such as `OAUTH2`; empty where it does not say.
    /// `None`: there is no such toolkit.
    fn toolkit_schemes(&self, slug: &str) -> impl Future<Output = ApiResult<Option<Vec<String>>>> + Send;
}

/// A column of D1's `kv_audit` as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditColumn {
    pub name: String,
    /// As declared, such as `TEXT`; empty where nothing was declared.
    pub declared: String,
    pub not_null: bool,
    pub has_default: bool,
    /// Part of the primary key.
    pub primary_key: bool,
}

/// The table `kv_audit` as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditTable {
    /// In the order of the table; none: there is no such table.
    pub columns: Vec<AuditColumn>,
    /// The columns of each unique index that covers all rows, the primary key's included.
    pub unique: Vec<Vec<String>>,
}

/// D1 without writes.
pub trait AuditShape: KvRead {
    fn audit_table(&self) -> impl Future<Output = ApiResult<AuditTable>> + Send;
}

/// What the last answer of a vendor said of its own request counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Requests in one window.
    pub limit: u64,
    /// Length of the window, milliseconds.
    pub window_ms: i64,
    /// What is left of the window, where it was told.
    pub left: Option<u64>,
}
