//! What the keys at Nango may do, found out without one refresh.

use super::live::{Live, failed};
use super::{Assessment, Finding, Severity};
use crate::ports::{ApiErrorKind, AuditShape, Outside, SourceRights, TargetAbilities};

impl<O> Live<'_, O>
where
    O: Outside<Source: SourceRights, Target: TargetAbilities, Cloudflare: AuditShape>,
{
    /// The key of the shim reads credentials: nobody else keeps tokens fresh.
    pub(super) async fn rights(&self, out: &mut Assessment) {
        const CHECK: &str = "nango-rights";
        out.findings.push(match self.outside.source().may_read_credentials().await {
            Ok(true) => Finding::ok(CHECK, "the key may read credentials (asked for those of nobody; no refresh)"),
            Ok(false) => Finding::error(
                CHECK,
                "the key may not read credentials, so the shim cannot keep tokens fresh",
                "give it `environment:connections:read_credentials`, see docs/assess.md",
            ),
            Err(error) => failed(CHECK, &error, "CUTOVER_NANGO_KEY must be an environment's key"),
        });
    }

    /// Connect sessions: the right to open them; with `write`, one that is opened and closed.
    pub(super) async fn connect(&self, write: bool, out: &mut Assessment) {
        const CHECK: &str = "nango-connect";
        let source = self.outside.source();
        out.findings.push(match source.may_open_sessions().await {
            Ok(false) => Finding::warning(
                CHECK,
                "the key may not open Connect sessions: nobody can be sent to Nango to connect (again)",
                "give it `environment:connect_sessions:write`",
            ),
            Ok(true) if !write => Finding::ok(
                CHECK,
                "the key may open sessions (asked without a name); `--write` opens one and closes it",
            ),
            Ok(true) => match source.try_session().await {
                Ok(()) => Finding::ok(CHECK, "a session was opened and closed again"),
                Err(error) if matches!(error.kind, ApiErrorKind::Server { .. }) => Finding::error(
                    CHECK,
                    error.to_string(),
                    "a self-hosted Nango makes no sessions without `NANGO_ENCRYPTION_KEY`; else ask again",
                ),
                Err(error) => failed(CHECK, &error, "the key must open Connect sessions"),
            },
            Err(error) => failed(CHECK, &error, "CUTOVER_NANGO_KEY must be an environment's key"),
        });
    }
}

/// The verifier's own key must list, and must not be able to refresh.
pub async fn verify_key<S: SourceRights>(key: Option<&S>) -> Finding {
    const CHECK: &str = "nango-verify-key";
    let Some(source) = key else {
        return Finding::new(
            CHECK,
            Severity::Info,
            "`CUTOVER_NANGO_VERIFY_KEY` is not set: `verify` lists with the main key, which refreshes nothing either",
            "for certainty make a key with `environment:connections:list` alone",
        );
    };
    let what = "CUTOVER_NANGO_VERIFY_KEY must be an environment's key with `environment:connections:list`";
    let listed = match source.list_connections().await {
        Ok(listed) => listed,
        Err(error) => return failed(CHECK, &error, what),
    };
    match source.may_read_credentials().await {
        Ok(false) => {
            Finding::ok(CHECK, format!("it lists {} connections, and is refused their credentials", listed.len()))
        }
        Ok(true) => Finding::error(
            CHECK,
            "it may read credentials, and within 15 minutes of a token's end such a read refreshes",
            "make a key without `environment:connections:read_credentials`",
        ),
        Err(error) => failed(CHECK, &error, what),
    }
}
