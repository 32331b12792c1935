//! The consent campaign: who must connect their account, who did, and a link for whoever is about
//! to. Links live ten minutes, so what people are sent is the address of a page that makes one.

use std::collections::BTreeMap;

use super::super::{Engine, EngineError, EngineResult};
use super::consent::Opened;
use crate::catalogue::identity::Identity;
use crate::domain::api::Api;
use crate::domain::criteria::Note;
use crate::domain::custody::{Event, Route, Stage};
use crate::domain::secret::Secret;
use crate::domain::time::{SECOND_MS, Timestamp};
use crate::domain::triplet::Triplet;
use crate::ports::{AccountStatus, Outside, TargetRead};
use crate::store::TripletRow;

/// Links that one triplet may use up: whoever needs more needs help.
const LINKS_MAX: u32 = 30;

/// Links in a row that somebody else may have made just before ours.
const OVERTAKEN_MAX: u32 = 5;

/// What a person who wants to connect gets.
#[derive(Debug)]
pub enum ConsentStart {
    /// Open this, at once.
    Link { url: Secret, until: Timestamp },
    /// It is connected already.
    Done(Stage),
    /// Not now.
    Later(Timestamp),
    /// Not without help, and why.
    Refused(String),
}

/// Where one consent stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ConsentRow {
    pub triplet: Triplet,
    pub toolkit: String,
    pub wave: Option<u32>,
    /// `waiting`, `opened`, `checking`, `done` or `held`.
    pub state: &'static str,
    /// The page that a person is sent to, relative to the shim's public address.
    pub page: String,
    pub links: u32,
    pub reminders: u32,
    pub reminded_at: Option<Timestamp>,
    /// Why the last consent was sent back, or why it is held.
    pub reason: Option<String>,
}

impl ConsentRow {
    /// Whether a person still has to do something.
    pub fn is_open(&self) -> bool {
        matches!(self.state, "waiting" | "opened")
    }
}

impl<O: Outside> Engine<O> {
    /// The path of the page where the person behind a triplet connects. Nobody can guess it, and
    /// it says nothing about the tenant.
    pub fn consent_page(&self, triplet: &Triplet) -> String {
        let ticket = self.store.vault().fingerprints().identity_digest(&format!("consent page of {triplet}"));
        format!("/consent/{ticket}")
    }

    /// Whose page that is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn consent_page_of(&self, path: &str) -> EngineResult<Option<TripletRow>> {
        let rows = self.moving().await?;
        Ok(rows
            .into_iter()
            .find(|row| row.custody.route == Route::Reconsent && self.consent_page(&row.triplet) == path))
    }

    /// Lets a dry run of the campaign go on where the real one asks the providers who each old grant
    /// belongs to. Only for a state that is thrown away: nothing can be compared afterwards.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn skip_old_identities(&self) -> EngineResult<()> {
        for row in self.moving().await?.iter().filter(|row| row.old_identity.is_none()) {
            self.store.save_old_identity(&row.triplet, &Identity::default()).await?;
        }
        Ok(())
    }

    /// Why the last consent for a triplet was sent back, if one was.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sent_back(&self, triplet: &Triplet) -> EngineResult<Option<String>> {
        let (notes, name) = (self.store.load_notes("consent-rejected").await?, triplet.to_string());
        Ok(notes.into_iter().rev().find(|note| note.subject == name).map(|note| note.detail))
    }

    /// Where the campaign stands, triplet by triplet.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn campaign(&self) -> EngineResult<Vec<ConsentRow>> {
        let mut rejected: BTreeMap<String, String> = BTreeMap::new();
        for note in self.store.load_notes("consent-rejected").await? {
            rejected.insert(note.subject, note.detail);
        }
        let mut reminded: BTreeMap<String, (u32, Timestamp)> = BTreeMap::new();
        for note in self.store.load_notes("consent-reminder").await? {
            let entry = reminded.entry(note.subject).or_insert((0, note.at));
            *entry = (entry.0 + 1, note.at.max(entry.1));
        }
        let rows = self.moving().await?;
        Ok(rows
            .into_iter()
            .filter(|row| row.custody.route == Route::Reconsent)
            .map(|row| {
                let name = row.triplet.to_string();
                let state = match row.custody.stage {
                    _ if row.custody.held.is_some() => "held",
                    Stage::Planned | Stage::Mirroring if row.consent_account.is_some() => "opened",
                    Stage::Planned | Stage::Mirroring => "waiting",
                    Stage::Consented => "checking",
                    _ => "done",
                };
                let reminders = reminded.get(&name).copied();
                ConsentRow {
                    page: self.consent_page(&row.triplet),
                    toolkit: row.toolkit.unwrap_or_default(),
                    wave: row.wave,
                    state,
                    links: row.consent_attempts,
                    reminders: reminders.map_or(0, |r| r.0),
                    reminded_at: reminders.map(|r| r.1),
                    reason: row.custody.held.or_else(|| rejected.remove(&name).filter(|_| state == "waiting")),
                    triplet: row.triplet,
                }
            })
            .collect())
    }

    /// The consents that are due a reminder: open, and not reminded for `every_ms`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn due_reminders(&self, every_ms: i64, now: Timestamp) -> EngineResult<Vec<ConsentRow>> {
        let mut due = self.campaign().await?;
        due.retain(|row| row.is_open() && row.reminded_at.is_none_or(|at| now.since(at) >= every_ms));
        Ok(due)
    }

    /// [`Engine::due_reminders`], noted as reminded now; sending is the caller's.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remind(&self, every_ms: i64, now: Timestamp) -> EngineResult<Vec<ConsentRow>> {
        let due = self.due_reminders(every_ms, now).await?;
        for row in &due {
            let note = Note { at: now, subject: row.triplet.to_string(), detail: "reminded".to_owned() };
            self.store.add_note("consent-reminder", &note).await?;
        }
        Ok(due)
    }

    /// A person is about to connect: makes a fresh link for them. What they connected through the
    /// link before counts, if they did.
    ///
    /// # Errors
    /// When the store fails, or Composio refuses what a link needs.
    pub async fn start_consent(&self, triplet: &Triplet, now: Timestamp) -> EngineResult<ConsentStart> {
        let rows = self.moving().await?;
        let Some(row) = rows.into_iter().find(|row| &row.triplet == triplet) else {
            return Ok(ConsentStart::Refused("the plan does not move it".to_owned()));
        };
        if row.custody.stage != Stage::Mirroring {
            return Ok(match row.custody.stage {
                Stage::Planned => ConsentStart::Refused("the cutover has not come to it yet".to_owned()),
                stage => ConsentStart::Done(stage),
            });
        }
        if let Some(reason) = row.custody.held {
            return Ok(ConsentStart::Refused(reason));
        }
        match self.demand_leave(row.wave, "consent", now).await {
            Ok(None) => {}
            Ok(Some(at)) => return Ok(ConsentStart::Later(at)),
            Err(EngineError::Refused(reason)) => return Ok(ConsentStart::Refused(reason)),
            Err(error) => return Err(error),
        }
        if row.old_identity.is_none() {
            // Before any consent: with the same client the old grant may not outlive it.
            let connections = self.store.load_connections().await?;
            let Some(connection) = connections.iter().find(|c| c.id == row.connection) else {
                return Ok(ConsentStart::Refused("its connection at Nango is not known".to_owned()));
            };
            if let Some(at) = self.learn_old_identity(&row, connection, now).await? {
                return Ok(ConsentStart::Later(at));
            }
        }
        if let Some(account) = &row.consent_account {
            let found = self.outside.target().get_account(account).await;
            self.observe(Api::Composio, now, &found).await?;
            if let Ok(found) = found
                && found.status == AccountStatus::Active
            {
                let event = Event::ConsentCompleted { account: found.id };
                self.record(triplet, &event, now).await?;
                return Ok(ConsentStart::Done(Stage::Consented));
            }
        }
        self.make_link(row, now).await
    }

    /// Makes a link whose address is known. One that was made before a crash, or by somebody else at
    /// this moment, is passed by: the next one has another name.
    async fn make_link(&self, mut row: TripletRow, now: Timestamp) -> EngineResult<ConsentStart> {
        for _ in 0..OVERTAKEN_MAX {
            if row.consent_attempts >= LINKS_MAX {
                return Ok(ConsentStart::Refused(format!("{LINKS_MAX} links were made for it already")));
            }
            let opened = self.open_link(&row, now).await?;
            let Some(newest) = self.store.load_triplet(&row.triplet).await? else { break };
            row = newest;
            match opened {
                Opened::Open(Some(url)) => {
                    return Ok(ConsentStart::Link { url, until: row.consent_until.unwrap_or(now) });
                }
                Opened::Open(None) | Opened::Taken => {}
                Opened::Later(at) => return Ok(ConsentStart::Later(at)),
                Opened::Nothing => {
                    return Ok(ConsentStart::Refused("there is no toolkit to connect it to".to_owned()));
                }
            }
        }
        Ok(ConsentStart::Later(now.plus_ms(SECOND_MS)))
    }
}
