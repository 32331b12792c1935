//! The plan as a file: its id, its digest, its refusal to be edited, and what moved since.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::planner::canonical;
use super::{Budget, Fact, Inputs, Note, PLAN_VERSION, Plan, PlanRow, Policy, Probe, Summary, Wave, planner};
use crate::catalogue::Catalogue;
use crate::domain::secret::hex;
use crate::domain::time::Timestamp;
use crate::inventory::Inventory;

/// Feeds JSON to a hash without ever holding it whole.
struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sha256_of<T: Serialize + ?Sized>(value: &T) -> String {
    let mut writer = io::BufWriter::with_capacity(1 << 16, HashWriter(Sha256::new()));
    serde_json::to_writer(&mut writer, value).expect("plain data turns into JSON and a hash takes all of it");
    let Ok(HashWriter(hash)) = writer.into_inner() else { unreachable!("a hash takes all bytes") };
    hex(&hash.finalize())
}

/// `sha256:` and 64 hex digits over the canonical JSON of `value`.
pub fn digest_of<T: Serialize + ?Sized>(value: &T) -> String {
    format!("sha256:{}", sha256_of(value))
}

/// The digest of an inventory over its canonical rows: whatever file it came from, and whether or
/// not that said the auth mode which the catalogue knows anyway.
pub fn inventory_digest(inventory: &Inventory, catalogue: &Catalogue) -> String {
    let mut hash = Sha256::new();
    let mut line = String::new();
    for row in canonical(inventory) {
        let mode = row.auth_mode.as_deref();
        let mode = mode.or_else(|| catalogue.integration(&row.integration_key).map(|i| i.auth_mode.as_str()));
        line.clear();
        // No part can hold a NUL, and ids with one are refused by the readers.
        let _ = write!(
            line,
            "{}\0{}\0{}\0{}\0{}",
            row.tenant,
            row.integration_key,
            row.connection_id,
            row.account,
            mode.unwrap_or_default()
        );
        for provider in &row.providers {
            let _ = write!(line, "\0{provider}");
        }
        line.push('\n');
        hash.update(line.as_bytes());
    }
    format!("sha256:{}", hex(&hash.finalize()))
}

/// What the id covers: everything but when it was made.
#[derive(Serialize)]
struct Content<'a> {
    plan_version: u32,
    inventory: &'a str,
    policy: &'a str,
    catalogue: &'a str,
    facts: Vec<&'a Fact>,
    summary: &'a Summary,
    rows: &'a [PlanRow],
    waves: &'a [Wave],
    budget: &'a Budget,
    notes: &'a [Note],
}

fn content_digest(plan: &Plan) -> String {
    let Inputs { inventory, policy, catalogue, probes } = &plan.inputs;
    sha256_of(&Content {
        plan_version: plan.plan_version,
        inventory,
        policy,
        catalogue,
        facts: probes.iter().map(|p| &p.fact).collect(),
        summary: &plan.summary,
        rows: &plan.rows,
        waves: &plan.waves,
        budget: &plan.budget,
        notes: &plan.notes,
    })
}

/// The id and the digest that fit the plan. The digest covers the content through its own digest
/// in full length, and what the id leaves out.
fn seals(plan: &Plan) -> (String, String) {
    let content = content_digest(plan);
    let id = format!("p-{}", &content[..12]);
    let digest = digest_of(&(content, plan.created_at, plan.expires_at, &plan.inputs.probes));
    (id, digest)
}

/// Sets id and digest.
pub(super) fn seal(plan: &mut Plan) {
    (plan.id, plan.digest) = seals(plan);
}

/// Why a text is not a plan that may be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedPlanError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("no `plan_version`: this is not a plan")]
    NotAPlan,
    #[error("plan version {found} is not known, this program reads version {PLAN_VERSION}")]
    Version { found: String },
    #[error("not a plan of version {PLAN_VERSION}: {0}")]
    Shape(String),
    #[error("the plan calls itself `{stated}` and its content is `{actual}`: it was edited")]
    Id { stated: String, actual: String },
    #[error("the digest of plan `{id}` does not fit its content: it was edited")]
    Digest { id: String },
}

impl Plan {
    /// The one text form: JSON with its keys in a fixed order and one row to a line, so that a
    /// change of one row is a change of one line.
    pub fn to_json(&self) -> String {
        let Self { plan_version, id, created_at, expires_at, inputs, summary, rows, waves, budget, notes, digest } =
            self;
        let mut out = String::from("{\n");
        field(&mut out, "plan_version", plan_version);
        field(&mut out, "id", id);
        field(&mut out, "created_at", created_at);
        field(&mut out, "expires_at", expires_at);
        field(&mut out, "inputs", inputs);
        field(&mut out, "summary", summary);
        list(&mut out, "rows", rows);
        list(&mut out, "waves", waves);
        field(&mut out, "budget", budget);
        list(&mut out, "notes", notes);
        field(&mut out, "digest", digest);
        out.truncate(out.len() - 2);
        out.push_str("\n}\n");
        out
    }

    /// Reads a plan back and checks that nobody edited it.
    ///
    /// # Errors
    /// When the version is unknown (by name, before anything else is looked at), a field is
    /// unknown or missing, or id or digest do not fit the content.
    pub fn from_json(text: &str) -> Result<Self, SavedPlanError> {
        #[derive(serde::Deserialize)]
        struct Versioned {
            plan_version: Option<serde_json::Value>,
        }
        let versioned: Versioned = serde_json::from_str(text).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => SavedPlanError::NotAPlan,
            _ => SavedPlanError::Json(e.to_string()),
        })?;
        let version = versioned.plan_version.ok_or(SavedPlanError::NotAPlan)?;
        if version != PLAN_VERSION {
            return Err(SavedPlanError::Version { found: version.to_string() });
        }
        let plan: Self = serde_json::from_str(text).map_err(|e| SavedPlanError::Shape(e.to_string()))?;
        let (actual, digest) = seals(&plan);
        if plan.id != actual {
            return Err(SavedPlanError::Id { stated: plan.id, actual });
        }
        if plan.digest != digest {
            return Err(SavedPlanError::Digest { id: plan.id });
        }
        Ok(plan)
    }
}

fn json_of<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data turns into JSON")
}

fn field<T: Serialize>(out: &mut String, name: &str, value: &T) {
    let _ = writeln!(out, "  \"{name}\": {},", json_of(value));
}

fn list<T: Serialize>(out: &mut String, name: &str, items: &[T]) {
    let _ = write!(out, "  \"{name}\": [");
    for (i, item) in items.iter().enumerate() {
        let _ = write!(out, "{}\n    {}", if i == 0 { "" } else { "," }, json_of(item));
    }
    out.push_str(if items.is_empty() { "],\n" } else { "\n  ],\n" });
}

/// An input that is no longer what the plan was made from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Moved {
    #[error("the inventory changed")]
    Inventory,
    #[error("the policy changed")]
    Policy,
    #[error("the catalogue changed")]
    Catalogue,
    #[error("a probe found something else than the plan was made from")]
    Probes,
    #[error("the plan expired at {}", at.to_minute())]
    Expired { at: Timestamp },
    /// All inputs are the same and today's plan differs: a fact or a probe passed its date.
    #[error("a fact passed its date: planning again gives `{id}`")]
    Facts { id: String },
}

/// Which inputs moved since the plan was made; empty: it may be applied.
pub fn staleness(
    plan: &Plan,
    inventory: &Inventory,
    catalogue: &Catalogue,
    policy: &Policy,
    probes: &[Probe],
    now: Timestamp,
) -> Vec<Moved> {
    let today = planner::plan(inventory, catalogue, policy, probes, now);
    let mut moved = Vec::new();
    if plan.inputs.inventory != today.inputs.inventory {
        moved.push(Moved::Inventory);
    }
    if plan.inputs.policy != today.inputs.policy {
        moved.push(Moved::Policy);
    }
    if plan.inputs.catalogue != today.inputs.catalogue {
        moved.push(Moved::Catalogue);
    }
    let facts = |plan: &Plan| plan.inputs.probes.iter().map(|p| p.fact.clone()).collect::<Vec<_>>();
    if facts(plan) != facts(&today) {
        moved.push(Moved::Probes);
    }
    if moved.is_empty() && plan.id != today.id {
        moved.push(Moved::Facts { id: today.id });
    }
    if now >= plan.expires_at {
        moved.push(Moved::Expired { at: plan.expires_at });
    }
    moved
}
