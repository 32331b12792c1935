//! `cutover keys`: changes the keys that the state is encrypted with, while everything runs.

use super::apply::StateArgs;
use super::person::speaker;
use super::plan::Inputs;
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::time::Timestamp;
use crate::exit;
use crate::store::{Store, StoreError, Vault};

/// Change the keys that the state is encrypted with
///
/// Tokens are encrypted with the newest key of the key file and opened with any of them. Fingerprints
/// and digests have a key of their own, which stays, so that what was compared before still compares.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover keys rotate
  cutover keys rotate --state postgres://cutover@db/cutover --key-file /etc/cutover/keys
  cutover keys drop-old --format json

On several machines: `rotate --add-only`, copy the key file to all of them, then `rotate --reencrypt-only`,
then `drop-old` and copy once more.")]
pub struct KeysArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    Rotate(RotateArgs),
    DropOld(DropOldArgs),
}

/// Add a key and encrypt everything with it
///
/// A shim that runs on this machine takes the new key up by itself.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cutover keys rotate\n  cutover keys rotate --add-only")]
struct RotateArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Only add the key to the key file
    #[arg(long, conflicts_with = "reencrypt_only")]
    add_only: bool,
    /// Only encrypt with the newest key what older ones encrypted
    #[arg(long)]
    reencrypt_only: bool,
    /// Who does it, for the audit trail [default: USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: OutputFormat,
}

/// Take all keys but the newest out of the key file
///
/// Encrypts with the newest key first whatever still needs an older one.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  cutover keys drop-old\n  cutover keys drop-old --key-file /etc/cutover/keys")]
struct DropOldArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Who does it, for the audit trail [default: USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: OutputFormat,
}

/// # Errors
/// Exit code 2 when nobody said who it is, there is no key file or the keys come from the environment, 1 when the state
/// cannot be opened or changed.
pub fn run(args: &KeysArgs, ui: &Ui) -> CommandResult {
    super::runtime()?.block_on(async {
        match &args.action {
            Action::Rotate(args) => rotate(args, ui).await,
            Action::DropOld(args) => drop_old(args, ui).await,
        }
    })
}

async fn rotate(args: &RotateArgs, ui: &Ui) -> CommandResult {
    let add_key = || Vault::add_key(args.state.key_file()?).map_err(|error| keys_failed(&error));
    if args.add_only {
        // The key file has no audit trail.
        return report(ui, args.format, add_key()?, 0, 0);
    }
    let deed = Deed::by(args.by.as_deref())?;
    refuse_absent(&args.state)?;
    if !args.reencrypt_only {
        add_key()?;
    }
    let (store, newest, changed) = encrypt_anew(&args.state).await?;
    deed.record(&store, &serde_json::json!({"newest": newest, "encrypted": changed})).await?;
    store.close().await.map_err(|error| state_failed(&error))?;
    report(ui, args.format, newest, changed, 0)
}

async fn drop_old(args: &DropOldArgs, ui: &Ui) -> CommandResult {
    let deed = Deed::by(args.by.as_deref())?;
    let file = args.state.key_file()?;
    refuse_absent(&args.state)?;
    let (store, newest, changed) = encrypt_anew(&args.state).await?;
    let dropped = Vault::drop_old_keys(file).map_err(|error| keys_failed(&error))?;
    deed.record(&store, &serde_json::json!({"newest": newest, "encrypted": changed, "dropped": dropped})).await?;
    store.close().await.map_err(|error| state_failed(&error))?;
    report(ui, args.format, newest, changed, dropped)
}

fn refuse_absent(state: &StateArgs) -> Result<(), CommandError> {
    if state.exists() {
        return Ok(());
    }
    Err(CommandError::usage("there is no such state").hint("name it as `--state`"))
}

async fn encrypt_anew(state: &StateArgs) -> Result<(Store, u32, u64), CommandError> {
    let store = state.open_beside().await?;
    let changed = store.rotate().await.map_err(|error| state_failed(&error))?;
    let newest = store.vault().newest_key();
    Ok((store, newest, changed))
}

/// Who changes the keys, and when: known before anything is changed.
struct Deed {
    by: String,
    at: Timestamp,
}

impl Deed {
    fn by(named: Option<&str>) -> Result<Self, CommandError> {
        Ok(Self { by: speaker(named)?, at: Inputs::default().now()? })
    }

    async fn record(&self, store: &Store, what: &serde_json::Value) -> Result<(), CommandError> {
        let written = store.record_action(&self.by, "keys", &what.to_string(), self.at).await;
        written.map_err(|error| state_failed(&error))
    }
}

fn report(ui: &Ui, format: OutputFormat, newest: u32, changed: u64, dropped: usize) -> CommandResult {
    if format == OutputFormat::Json {
        let report = serde_json::json!({
            "exit_code": exit::OK, "reason": "done", "newest_key": newest, "encrypted_anew": changed, "dropped_keys": dropped,
        });
        ui.print(&format!("{report:#}\n"));
    } else {
        ui.print(&format!("key {newest} encrypts; {changed} payloads encrypted anew, {dropped} old keys dropped\n"));
    }
    Ok(exit::OK)
}

fn keys_failed(error: &dyn std::error::Error) -> CommandError {
    CommandError::usage("the key file cannot be changed").because(error)
}

fn state_failed(error: &StoreError) -> CommandError {
    CommandError::failed("the state cannot be changed").because(error)
}
