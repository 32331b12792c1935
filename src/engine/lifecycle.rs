//! The steps of a cutover: apply, consent, prove, drill, switch, settle, retire.
//!
//! Each operation looks at where things stand, does what can be done at `now`, and says whether
//! it is done or when to call it again. Calling one again after a crash goes on where it was:
//! effects are written down as intents first and settled by looking.

mod apply;
mod campaign;
mod consent;
mod control;
mod drill;
mod moves;
mod retire;
mod retire_nango;
mod reverse;
mod settle;
mod sweep;
mod switch;

use std::future::Future;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Engine, EngineError, EngineResult};
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Custody, Event};
use crate::domain::secret::hex;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::{ApiError, ApiResult, Outside};
use crate::store::{IntentState, TripletRow};

pub use campaign::{ConsentRow, ConsentStart};
pub use control::Control;
pub use retire::RetireStage;
pub use reverse::{Reversal, SwitchPreview};
pub use sweep::{Zombie, ZombieKind};
pub use switch::SwitchTerms;

/// Who acts in the audit trail when no person does: the duties.
const ITSELF: &str = "cutover";

tokio::task_local! {
    /// The person whose operation is being carried out. It belongs to the call and not to the engine:
    /// one engine runs operations and duties.
    static ACTOR: String;
}

/// Carries out `operation` in the name of `actor`, as the audit trail will show it.
pub async fn by<F: Future>(actor: &str, operation: F) -> F::Output {
    ACTOR.scope(actor.to_owned(), operation).await
}

/// How long an operation waits before it asks an API again that did not answer.
const RETRY_MS: i64 = 30 * SECOND_MS;

/// How long it waits after a 429 that names no time.
const LIMITED_MS: i64 = 2 * SECOND_MS;

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// Call again at this time.
    Wait(Timestamp),
}

/// The outcome of one effect.
enum Effected {
    /// It is known to have happened; this is what it gave.
    Yes(String),
    /// Not now; the API may answer later.
    Later(ApiError),
    /// It was refused, and asking again cannot help.
    Never(ApiError),
}

impl<O: Outside> Engine<O> {
    /// Makes something true in the outside world exactly once: writes the intent down, looks
    /// whether it is true already (a crash may have cut the answer off), acts if not. `look` gives
    /// everything that it finds: of several things nobody but a person can say which one counts.
    async fn once(
        &self,
        id: &str,
        action: &str,
        api: Api,
        now: Timestamp,
        look: impl AsyncFnOnce() -> ApiResult<Vec<String>>,
        act: impl AsyncFnOnce() -> ApiResult<String>,
    ) -> EngineResult<Effected> {
        match self.store.begin_intent(id, action, now).await? {
            Some(IntentState::Done(result)) => return Ok(Effected::Yes(result)),
            Some(IntentState::Ambiguous(question)) => {
                return Err(EngineError::Ambiguous { intent: id.to_owned(), question });
            }
            Some(IntentState::Started) | None => {}
        }
        let seen = look().await;
        self.observe(api, now, &seen).await?;
        let result = match seen {
            Ok(found) if found.len() > 1 => {
                let question = format!("to {action}, one of {} must be it: which one?", found.join(", "));
                return Err(self.ask_person(id, question, now).await?);
            }
            Ok(found) if !found.is_empty() => Ok(found.concat()),
            Ok(_) => {
                let acted = act().await;
                self.observe(api, now, &acted).await?;
                acted
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(result) => {
                self.store.finish_intent(id, &result).await?;
                Ok(Effected::Yes(result))
            }
            Err(error) if error.is_transient() => Ok(Effected::Later(error)),
            Err(error) => Ok(Effected::Never(error)),
        }
    }

    /// Looking found several things where one was to be made: which one counts is for a person to say.
    async fn ask_person(&self, id: &str, question: String, now: Timestamp) -> EngineResult<EngineError> {
        self.store.mark_ambiguous(id, &question).await?;
        let note = Note { at: now, subject: id.to_owned(), detail: question.clone() };
        self.store.add_note("ambiguous", &note).await?;
        Ok(EngineError::Ambiguous { intent: id.to_owned(), question })
    }

    /// Takes a custody event in the name of whoever acts.
    async fn record(&self, triplet: &Triplet, event: &Event, now: Timestamp) -> EngineResult<Custody> {
        let actor = actor();
        Ok(self.store.record_custody(triplet, event, &actor, now).await?)
    }

    /// Notes in the audit trail what whoever acts did besides.
    async fn record_action(&self, subject: &str, event: Value, now: Timestamp) -> EngineResult<()> {
        let actor = actor();
        Ok(self.store.record_action(&actor, subject, &event.to_string(), now).await?)
    }

    /// The triplets whose custody moves.
    async fn moving(&self) -> EngineResult<Vec<TripletRow>> {
        Ok(self.store.load_triplets().await?.into_iter().filter(TripletRow::moves).collect())
    }
}

fn actor() -> String {
    ACTOR.try_with(String::clone).unwrap_or_else(|_| ITSELF.to_owned())
}

/// What a look found that can only be so or not.
fn seen(is_so: bool) -> Vec<String> {
    if is_so { vec![String::new()] } else { Vec::new() }
}

/// When to ask again after an error: what the server asked for; soon after a limit without a
/// time, since the next request usually passes; else half a minute.
fn retry_at(now: Timestamp, error: &ApiError) -> Timestamp {
    now.plus_ms(match error.kind {
        ref limit if limit.is_limit() => limit.wait_ms().unwrap_or(0).max(LIMITED_MS),
        _ => RETRY_MS,
    })
}

/// A name for a triplet that says nothing about the tenant and is always the same: the part that
/// makes aliases at Composio unique, so that a repeated creation is found instead of doubled.
pub(super) fn alias(prefix: &str, triplet: &Triplet) -> String {
    let digest = Sha256::digest(triplet.to_string().as_bytes());
    format!("{prefix}-{}", hex(&digest[..6]))
}
