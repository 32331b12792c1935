//! Log lines on stderr.

use tracing_subscriber::EnvFilter;

use super::{Globals, LogFormat};

/// Starts logging: nothing by default (results and errors have their own ways), warnings with `-v`, then info, then everything of ours.
/// The environment variable `CUTOVER_LOG` takes a filter instead, such as `cutover::engine=debug`.
pub(super) fn start(globals: &Globals, color: bool) {
    let level = match globals.verbose {
        0 => "cutover=off",
        1 => "cutover=warn",
        2 => "cutover=info",
        _ => "cutover=trace",
    };
    let filter = EnvFilter::try_from_env("CUTOVER_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(color);
    match globals.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
