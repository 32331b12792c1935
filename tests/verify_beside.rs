//! A comparison beside a running shim: what both send together stays within the account's limit.

#[path = "support/cutover.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cutover::clients::{self, HttpOutside};
use cutover::domain::secret::FingerprintKey;
use cutover::domain::time::{HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};
use cutover::engine::Engine;
use cutover::plan::Policy;
use cutover::plan::policy::RatePolicy;
use cutover::ports::{ApiErrorKind, ApiResult, KeyListing, KvInspect, KvPlace, Namespace, StoredValue};
use cutover::sandbox::{World, WorldOptions};
use cutover::verify::live::{Budget, Caller, Depth, KvSide, KvSideOptions};
use cutover::verify::{Clock, Keys, Meter, Options, Order, Rules, Source, verify};
use support::Cutover;

/// Requests in five minutes that this account has, for everybody.
const LIMIT: u32 = 20;

const CONNECTIONS: usize = 300;

/// The world's time while a shim runs: whoever waits lets the duties do what is due meanwhile.
struct Beside {
    world: Arc<Mutex<World>>,
    clock: Arc<AtomicI64>,
    engine: Engine<HttpOutside>,
    due: Mutex<Timestamp>,
    handle: tokio::runtime::Handle,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a world in which a shim runs")
    }
}

impl Clock for Beside {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.load(Ordering::SeqCst))
    }

    fn wait_until(&self, at: Timestamp) {
        let mut due = self.due.lock().unwrap();
        // A request takes some of the world's time.
        let at = at.max(self.now().plus_ms(40));
        while self.now() < at {
            if *due <= self.now() {
                let next = self.handle.block_on(self.engine.run_due(self.now())).unwrap();
                *due = next.unwrap_or(at).max(self.now().plus_ms(SECOND_MS));
            }
            let to = at.min(*due);
            let mut world = self.world.lock().unwrap();
            world.advance_to(to);
            world.take_outbound();
            self.clock.store(to.millis(), Ordering::SeqCst);
        }
    }
}

/// A reader that counts what it was refused.
struct Counting<C> {
    inner: C,
    refused: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl<C: KvInspect> Counting<C> {
    fn count<T>(&self, answer: ApiResult<T>) -> ApiResult<T> {
        self.sent.fetch_add(1, Ordering::SeqCst);
        let refused = answer.as_ref().is_err_and(|error| matches!(error.kind, ApiErrorKind::RateLimited { .. }));
        self.refused.fetch_add(u64::from(refused), Ordering::SeqCst);
        answer
    }
}

impl<C: KvInspect> KvInspect for Counting<C> {
    async fn list_page(&self, place: &KvPlace, prefix: &str, cursor: Option<&str>) -> ApiResult<KeyListing> {
        self.count(self.inner.list_page(place, prefix, cursor).await)
    }

    async fn read_values(&self, place: &KvPlace, keys: &[String]) -> ApiResult<BTreeMap<String, Option<StoredValue>>> {
        self.count(self.inner.read_values(place, keys).await)
    }
}

/// What both sent to Cloudflare while the comparisons ran.
#[derive(Debug)]
struct Together {
    /// 429s that the shim, and the comparisons, met.
    refused: [u64; 2],
    sent: [u64; 2],
    /// Comparisons that came to an end.
    compared: u64,
}

/// A shim for an hour, with one comparison of every value after the other beside it. `shares`: by the
/// pace that the state keeps, or each process by a budget of its own, until one is refused.
fn an_hour(shares: bool) -> Together {
    let rows = (0..CONNECTIONS).map(|n| format!("t{n:04},slack,slack,default\n"));
    let inventory = format!("tenant,integration_key,providers,account\n{}", rows.collect::<String>());
    // The shim's own comparisons use all that it has for ordinary work.
    let policy = format!(
        "[rates]\ncloudflare_per_5_minutes = {LIMIT}\ncomposio_tier = \"pro\"\nnango_tier = \"enterprise\"\n\n[criteria]\nverify_every = \"5m\"\n"
    );
    let options = WorldOptions { cloudflare_per_5_minutes: Some(LIMIT), ..WorldOptions::default() };
    let cutover = Cutover::start_with(&inventory, &policy, Vec::new(), options);
    cutover.until_done(&["apply", &cutover.plan, "--yes"]);
    // What the set-up sent counts no more.
    cutover.advance(cutover.now().plus_ms(10 * MINUTE_MS));

    let engine = cutover.engine();
    let store = Arc::new(cutover.store());
    let limited = |counters: BTreeMap<String, i64>| {
        let count = |name: &str| counters.get(name).copied().unwrap_or(0) as u64;
        (count("limited:cloudflare"), count("requests:cloudflare"))
    };
    let before = limited(cutover.runtime.block_on(store.load_counters()).unwrap());
    let beside = Arc::new(Beside {
        world: Arc::clone(&cutover.sandbox.world),
        clock: Arc::clone(&cutover.clock),
        engine,
        due: Mutex::new(cutover.now()),
        handle: cutover.runtime.handle().clone(),
    });
    let clock: Arc<dyn Clock> = Arc::clone(&beside) as _;
    let (refused, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let now = Arc::clone(&beside);
    let client = clients::kv_inspect(cutover.endpoints().cloudflare, Arc::new(move || now.now())).unwrap();
    let client = Arc::new(Counting { inner: client, refused: Arc::clone(&refused), sent: Arc::clone(&sent) });
    let rates = Policy::from_toml(&policy).unwrap().rates;
    let (mut compared, until) = (0, cutover.now().plus_ms(HOUR_MS));
    while cutover.now() < until && (shares || refused.load(Ordering::SeqCst) == 0) {
        // A process of its own each time: what the one before sent is forgotten by it, and not by the state.
        let budget = match shares {
            true => Budget::beside(&rates, Arc::clone(&clock), Arc::clone(&store), beside.handle.clone()),
            // Within the limit by itself, as if nobody else were there.
            false => {
                let whole = RatePolicy { reserved_share: 0.0, comparisons_share: 0.05, ..rates.clone() };
                Budget::new(&whole, Arc::clone(&clock))
            }
        };
        let caller = Caller::new(beside.handle.clone(), Arc::new(budget));
        let side = |name: &str, namespace| {
            let options = KvSideOptions { depth: Depth::Full, skip: Arc::default(), states: false, whoami: None };
            KvSide::new(name, KvPlace::Gateway(namespace), Arc::clone(&client), caller.clone(), options)
        };
        let (left, right) = (side("kv:source", Namespace::Source), side("kv:target", Namespace::Target));
        let sides: [&dyn Source; 2] = [&left, &right];
        let rules = Rules { expect_ours: true, look_again_ms: Some(150 * SECOND_MS), ..Rules::default() };
        let order = Order::Auto;
        let options = Options { rules, order, memory: 64 << 20, folder: None, clock: Some(Arc::clone(&clock)) };
        let keys = Keys::new([3; 32], Some(FingerprintKey::new([7; 32])));
        let report = verify(sides, &options, &keys, None, &Meter::default(), &mut |_| {}).unwrap();
        assert_eq!(report.diagnostics.total, 0);
        assert_eq!(report.counts.differing(), 0, "at {}", cutover.now().to_rfc3339());
        compared += 1;
    }
    // Whatever the clients counted last is filed by the next round of the audit.
    beside.wait_until(cutover.now().plus_ms(11 * MINUTE_MS));
    let after = limited(cutover.runtime.block_on(store.load_counters()).unwrap());
    Together {
        refused: [after.0 - before.0, refused.load(Ordering::SeqCst)],
        sent: [after.1 - before.1, sent.load(Ordering::SeqCst)],
        compared,
    }
}

#[test]
fn a_shim_and_comparisons_beside_it_stay_within_one_limit() {
    let together = an_hour(true);
    println!("{together:?}");
    assert_eq!(together.refused, [0, 0], "{together:?}");
    assert!(together.compared >= 2 && together.sent.iter().all(|sent| *sent >= 20), "{together:?}");
    // The limit is one that two budgets pass which know nothing of each other.
    let apart = an_hour(false);
    println!("{apart:?}");
    assert!(apart.refused.iter().sum::<u64>() > 0, "{apart:?}");
}
