//! The live sides of a comparison, built from the configuration and the state.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::super::apply::StateArgs;
use super::super::config::Config;
use super::super::plan::{Inputs, wall_clock};
use super::super::{CommandError, Ui};
use crate::clients;
use crate::domain::criteria::CriteriaPolicy;
use crate::domain::custody::Stage;
use crate::domain::time::Timestamp;
use crate::plan::policy::IgnoreRule;
use crate::plan::saved::digest_of;
use crate::plan::{Plan, Policy};
use crate::ports::{KvPlace, Namespace};
use crate::store::{ConnectionRow, Store, TripletRow, Verification};
use crate::verify::live::{
    Budget, Caller, Depth, Estimate, JournalSide, KvSide, KvSideOptions, LiveTask, SideKind, Subject, Whoami,
    composio_side, estimate, nango_side,
};
use crate::verify::{Clock, Ignore, Source, Task};

/// What an argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Dump,
    Kv(KvPlace),
    Nango,
    Composio,
    Journal,
}

impl Named {
    pub(super) fn parse(argument: &str) -> Result<Self, CommandError> {
        Ok(match argument {
            "nango" => Self::Nango,
            "composio" => Self::Composio,
            "journal" => Self::Journal,
            "kv:source" => Self::Kv(KvPlace::Gateway(Namespace::Source)),
            "kv:target" => Self::Kv(KvPlace::Gateway(Namespace::Target)),
            _ => match argument.strip_prefix("kv:") {
                None => Self::Dump,
                Some(id) if !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric()) => {
                    Self::Kv(KvPlace::Id(id.to_owned()))
                }
                Some(_) => {
                    return Err(CommandError::usage(format!("`{argument}` names no namespace"))
                        .hint("write `kv:source`, `kv:target`, or `kv:` and the id of a namespace"));
                }
            },
        })
    }

    pub(super) fn kind(&self) -> SideKind {
        match self {
            Self::Dump => SideKind::Dump,
            Self::Kv(_) => SideKind::Kv,
            Self::Nango => SideKind::Nango,
            Self::Composio => SideKind::Composio,
            Self::Journal => SideKind::Journal,
        }
    }

    fn is_custodian(&self) -> bool {
        matches!(self, Self::Nango | Self::Composio)
    }

    /// Whether only our writers write there, once a plan is applied.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Kv(KvPlace::Gateway(_)) | Self::Journal)
    }
}

/// Real time, or as long after another time as the program has run.
#[derive(Debug)]
struct WallClock {
    ahead_ms: i64,
}

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        wall_clock().plus_ms(self.ahead_ms)
    }

    fn wait_until(&self, at: Timestamp) {
        while let ms @ 1.. = at.since(self.now()) {
            std::thread::sleep(Duration::from_millis(ms.unsigned_abs()));
        }
    }
}

/// What a comparison with a live side needs, and keeps alive.
pub(super) struct LiveSides {
    pub sides: [Box<dyn Source>; 2],
    /// The same sides by their keys and metadata only.
    pub listings: [Box<dyn Source>; 2],
    pub caller: Caller,
    pub clock: Arc<dyn Clock>,
    pub budget: Arc<Budget>,
    pub store: Option<Arc<Store>>,
    pub criteria: CriteriaPolicy,
    /// Keys that are left out on both sides.
    pub skip: Arc<BTreeSet<String>>,
    /// Whose they are.
    left_out: &'static str,
    /// Our writers are the only ones.
    pub ours: bool,
    /// Why a run is not kept as evidence.
    pub departure: Option<String>,
    /// What the estimate was made from; `None` when nobody knows how many keys there are.
    pub estimate: Option<Estimate>,
    // Last: the sides ask through it.
    pub runtime: Runtime,
}

impl LiveSides {
    /// Says what will be asked.
    pub(super) fn announce(&self, ui: &Ui) {
        match &self.estimate {
            Some(estimate) => ui.note(&estimate.to_string()),
            None => ui.note(
                "nobody knows how many keys there are: one request per 1,000 keys of a listing, one per 100 values",
            ),
        }
        if !self.skip.is_empty() {
            ui.note(&format!("{} triplets that {} are left out", self.skip.len(), self.left_out));
        }
    }

    /// Says what was asked.
    pub(super) fn account(&self, ui: &Ui) {
        let spent: Vec<String> =
            self.budget.spent().into_iter().map(|(api, n)| format!("{n} to {}", api.name())).collect();
        ui.note(&format!("requests: {}", if spent.is_empty() { "none".to_owned() } else { spent.join(", ") }));
    }
}

/// What the state says about the triplets.
#[derive(Default)]
struct Known {
    skip: BTreeSet<String>,
    subjects: BTreeMap<String, Subject>,
    /// Connected accounts and the keys they serve.
    accounts: BTreeMap<String, String>,
    fed: BTreeMap<(String, String), Vec<String>>,
    moving: u64,
    applied: bool,
}

impl Known {
    /// `journal`: a side is the journal, which tells of nothing that is not mirrored.
    fn of(
        triplets: Vec<TripletRow>,
        connections: &[ConnectionRow],
        retained: bool,
        journal: bool,
        applied: bool,
    ) -> Self {
        let mut known = Self { applied, ..Self::default() };
        for row in triplets {
            let key = row.triplet.kv_key();
            let stays = !row.moves() || row.custody.stage == Stage::Retired;
            let is_mirrored = !stays && row.custody.stage != Stage::Settled;
            if (stays && !retained) || (journal && !is_mirrored) {
                known.skip.insert(key.clone());
            }
            known.moving += u64::from(row.moves());
            // After the consent its account is the one that counts.
            if let Some(account) = row.custody.account.or(row.mirror_account) {
                known.accounts.insert(account, key.clone());
            }
            if let Some(connection) = connections.iter().find(|connection| connection.id == row.connection) {
                let id = (connection.integration_key.clone(), connection.connection_id.clone());
                known.fed.entry(id).or_default().push(key.clone());
                let config = connection.config.clone();
                known.subjects.insert(key, Subject { integration_key: row.integration_key, config });
            }
        }
        known
    }
}

/// Opens what the task names. `keys` is about how many keys a side has, when somebody said so.
pub(super) fn build(
    task: &Task,
    live: &LiveTask,
    named: &[Named; 2],
    keys: Option<u64>,
    dump: impl Fn(&str) -> Result<Box<dyn Source>, CommandError>,
    ui: &Ui,
) -> Result<LiveSides, CommandError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| CommandError::failed("cannot start the runtime").because(&error))?;
    let inputs = Inputs {
        policy: live.policy.as_ref().map(PathBuf::from),
        catalogue: live.catalogue.as_ref().map(PathBuf::from),
        ..Inputs::default()
    };
    let (policy, catalogue) = (inputs.load_policy()?, inputs.load_catalogue()?);
    let ahead_ms = inputs.now()?.since(wall_clock());
    let clock: Arc<dyn Clock> = Arc::new(WallClock { ahead_ms });
    let store = open_state(live, named, &runtime)?;
    let journal = named.contains(&Named::Journal);
    let known = match &store {
        Some(store) => runtime.block_on(load_known(store, live.retained, journal))?,
        None => Known::default(),
    };
    let budget = Arc::new(match &store {
        // Once a plan is applied a shim may run beside us, on this machine or another.
        Some(store) if known.applied => {
            Budget::beside(&policy.rates, Arc::clone(&clock), Arc::clone(store), runtime.handle().clone())
        }
        _ => Budget::new(&policy.rates, Arc::clone(&clock)),
    });
    let caller = Caller::new(runtime.handle().clone(), Arc::clone(&budget));

    let config = Config::load(ui.config.as_deref())?;
    let http_clock: clients::Clock = {
        let clock = Arc::clone(&clock);
        Arc::new(move || clock.now())
    };
    let unusable = |error: clients::SetupError| CommandError::usage("cannot use the settings").because(&error);
    let whoami = match (&store, live.identity) {
        (Some(store), true) => {
            let provider = clients::provider_read(config.provider()?, Arc::clone(&http_clock)).map_err(unusable)?;
            let key = store.vault().fingerprints().clone();
            let subjects = known.subjects.clone();
            Some(Arc::new(Whoami::new(catalogue.clone(), key, subjects, Arc::new(provider), caller.clone())))
        }
        _ => None,
    };
    let skip = Arc::new(known.skip);
    let uses = |namespace| named.contains(&Named::Kv(KvPlace::Gateway(namespace)));
    let kv = match named.iter().any(|side| matches!(side, Named::Kv(_))) {
        true => {
            let endpoint = config.kv(uses(Namespace::Source), uses(Namespace::Target))?;
            Some(Arc::new(clients::kv_inspect(endpoint, Arc::clone(&http_clock)).map_err(unusable)?))
        }
        false => None,
    };
    let open = |n: usize, depth: Depth| -> Result<Box<dyn Source>, CommandError> {
        let name = [&task.left, &task.right][n].as_str();
        let states = named[1 - n].is_custodian();
        Ok(match (&named[n], &kv, &store) {
            (Named::Dump, ..) => dump(name)?,
            (Named::Kv(place), Some(kv), _) => {
                let options = KvSideOptions { depth, skip: Arc::clone(&skip), states, whoami: whoami.clone() };
                Box::new(KvSide::new(name, place.clone(), Arc::clone(kv), caller.clone(), options))
            }
            (Named::Journal, _, Some(store)) => {
                Box::new(JournalSide::new(name, Arc::clone(store), caller.clone(), depth, states, Arc::clone(&skip)))
            }
            (Named::Nango, ..) => {
                let endpoint = config.nango_verifier()?.map_or_else(|| config.nango(), Ok)?;
                let source = clients::source_read(endpoint, Arc::clone(&http_clock)).map_err(unusable)?;
                let (source, fed) = (Arc::new(source), known.fed.clone());
                Box::new(nango_side(name, source, caller.clone(), catalogue.clone(), fed, Arc::clone(&skip)))
            }
            (Named::Composio, _, Some(_)) => {
                let target = clients::target_read(config.composio()?, Arc::clone(&http_clock)).map_err(unusable)?;
                let (target, accounts) = (Arc::new(target), known.accounts.clone());
                Box::new(composio_side(name, target, caller.clone(), accounts, whoami.clone(), Arc::clone(&skip)))
            }
            (Named::Kv(_) | Named::Journal | Named::Composio, ..) => {
                return Err(CommandError::failed(format!("`{name}` cannot be opened")));
            }
        })
    };
    let depth = live.depth();
    let sides = [open(0, depth)?, open(1, depth)?];
    let listings = [open(0, Depth::Keys)?, open(1, Depth::Keys)?];
    let kinds = named.each_ref().map(Named::kind);
    let keys = match (keys, &store) {
        (Some(keys), _) => Some(keys),
        (None, Some(store)) => {
            let before = runtime.block_on(store.load_verifications(50)).map_err(|error| broken(&error))?;
            // One that could not read everything does not know how many keys there are.
            let same = |run: &&Verification| run.left == task.left && run.right == task.right && run.failed == 0;
            before.iter().find(same).map(|run| run.keys).or((known.moving > 0).then_some(known.moving))
        }
        (None, None) => None,
    };
    let departure = match &store {
        Some(store) => runtime.block_on(departure(task, live, &policy, store))?,
        None => None,
    };
    let settle_ms = task.rules.look_again_ms.unwrap_or(0);
    let estimate = keys.map(|keys| estimate(kinds, depth, live.identity, keys, settle_ms, &budget));
    let ours = known.applied && named.iter().all(Named::is_ours);
    Ok(LiveSides {
        sides,
        listings,
        caller,
        clock,
        budget,
        store,
        criteria: policy.criteria,
        skip,
        left_out: if journal { "are not mirrored" } else { "do not move" },
        ours,
        departure,
        estimate,
        runtime,
    })
}

/// Why a run is no evidence for what the plan asks; `None` when it is.
async fn departure(
    task: &Task,
    live: &LiveTask,
    policy: &Policy,
    store: &Store,
) -> Result<Option<String>, CommandError> {
    let identity = store.load_identity().await.map_err(|error| broken(&error))?;
    Ok(match identity.map(|identity| serde_json::from_str::<Plan>(&identity.json)) {
        None => Some("no plan is applied in this state".to_owned()),
        Some(Err(error)) => Some(format!("the plan of this state cannot be read: {error}")),
        Some(Ok(plan)) if digest_of(policy) != plan.inputs.policy => {
            Some(format!("the policy is not the one that plan `{}` was made with; name that as `--policy`", plan.id))
        }
        Some(Ok(_)) => task.rules.departure(&policy_ignores(policy)?, live.retained).map(str::to_owned),
    })
}

/// The fields that a policy leaves out.
pub(super) fn policy_ignores(policy: &Policy) -> Result<Vec<Ignore>, CommandError> {
    let parse = |rule: &IgnoreRule| Ignore::parse(&format!("{}={}", rule.field, rule.reason));
    let rules: Result<Vec<Ignore>, _> = policy.verify.ignore.iter().map(parse).collect();
    rules.map_err(|error| CommandError::usage("a rule of the policy cannot be used").because(&error))
}

fn broken(error: &crate::store::StoreError) -> CommandError {
    CommandError::failed("the state cannot be used").because(error)
}

/// The state, when there is one; it is needed where only it knows what belongs to which triplet.
fn open_state(live: &LiveTask, named: &[Named; 2], runtime: &Runtime) -> Result<Option<Arc<Store>>, CommandError> {
    let needed = if named.contains(&Named::Journal) {
        Some("`journal`")
    } else if named.contains(&Named::Composio) {
        Some("`composio`")
    } else if live.identity {
        Some("`--identity`")
    } else {
        None
    };
    let Some((state, key_file)) = &live.state else {
        return match needed {
            None => Ok(None),
            Some(what) => Err(CommandError::usage(format!("{what} needs a state, and there is none"))
                .hint("name it as `--state`, or make it with `cutover apply`")),
        };
    };
    let args = StateArgs::named(state, key_file).map_err(|error| CommandError::usage(error.to_string()))?;
    Ok(Some(Arc::new(runtime.block_on(args.open_beside())?)))
}

async fn load_known(store: &Store, retained: bool, journal: bool) -> Result<Known, CommandError> {
    let triplets = store.load_triplets().await.map_err(|error| broken(&error))?;
    let connections = store.load_connections().await.map_err(|error| broken(&error))?;
    let applied = store.load_meta("soaking").await.map_err(|error| broken(&error))?.is_some();
    Ok(Known::of(triplets, &connections, retained, journal, applied))
}
