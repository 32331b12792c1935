//! Live sides against the sandbox: what is found, what is not, what it costs and what it leaves alone.

#[path = "verify_live/custody.rs"]
mod custody;
#[path = "verify_live/namespaces.rs"]
mod namespaces;

use std::collections::BTreeMap;

use cutover::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use cutover::verify::live::{Depth, Sample};
use cutover::verify::{Finding, Outcome, Report, Rules, Rung};
use namespaces::{Entry, KINDS, Kind, Namespaces, SOURCE, TARGET, Write};

fn findings(report: &mut Report) -> Vec<Finding> {
    let mut all = Vec::new();
    report
        .findings(|finding| {
            all.push(finding);
            Ok(())
        })
        .unwrap();
    all
}

fn rules() -> Rules {
    Rules { expect_ours: true, look_again_ms: Some(150 * SECOND_MS), ..Rules::default() }
}

/// A finding as the planted kind should give it: outcome, rung, classes with their fields.
fn shown(finding: &Finding) -> String {
    let changes: Vec<String> = finding.changes.iter().map(ToString::to_string).collect();
    format!("{} [{}] {}", finding.outcome, finding.rung, changes.join(", "))
}

#[test]
fn a_hundred_differences_of_twelve_kinds_are_found_and_nothing_else_is() {
    let entries = 10_000;
    let planted: BTreeMap<usize, Kind> = (0..100).map(|n| (n * 97 + 13, KINDS[n % KINDS.len()])).collect();
    let world = Namespaces::start(None);
    world.fill(entries, &planted);
    let mut report = world.verify(Depth::Full, &rules());
    let expected: Vec<(String, String)> =
        planted.iter().map(|(n, kind)| (Entry::new(*n).key(), kind.finding().to_owned())).collect();
    let found: Vec<(String, String)> = findings(&mut report).iter().map(|f| (f.key.clone(), shown(f))).collect();
    assert_eq!(found, expected);
    assert_eq!(report.diagnostics.total, 0);
    assert_eq!(report.counts.of(Outcome::Match), entries as u64 - 100);
    let rungs: Vec<_> = report.counts.rungs(Outcome::Match).collect();
    assert_eq!(rungs, [(Rung::Fingerprint, entries as u64 - 100)]);
    assert_eq!(report.verdict().0, 3);

    // The listings alone show what the metadata and the names say, without reading one value.
    let before = world.requests();
    let mut report = world.verify(Depth::Keys, &rules());
    let visible: Vec<&Kind> = planted.values().filter(|kind| kind.shows_in_a_listing()).collect();
    assert_eq!(findings(&mut report).len(), visible.len());
    assert_eq!(world.requests()["POST"], before["POST"], "no value is read");
}

/// Writes that go on while two namespaces are read: each goes to the source first and to the
/// target a little later, as the mirror's do. Keys come and go too.
fn traffic(seed: u64, keys: usize, from: Timestamp, lasting_ms: i64) -> Vec<(Timestamp, Write)> {
    let mut draw = seed;
    let mut next = move |below: u64| {
        draw = namespaces::mix(draw);
        draw % below
    };
    let mut writes = Vec::new();
    let mut touched: BTreeMap<usize, Timestamp> = BTreeMap::new();
    let mut at = from;
    while at.since(from) < lasting_ms {
        at = at.plus_ms(200 + next(1_500) as i64);
        let n = next(keys as u64) as usize;
        // Every tenth key is left alone: the planted differences are among those.
        // The mirror writes the versions of one key in their order.
        let busy = touched.insert(n, at).is_some_and(|before| at.since(before) < 30_000);
        if n.is_multiple_of(10) || busy {
            continue;
        }
        let (lag_ms, version) = (next(20_000) as i64, 2 + writes.len() as u64);
        let mut both = |write: Write| {
            writes.push((at, Write { namespace: SOURCE, ..write.clone() }));
            writes.push((at.plus_ms(lag_ms), Write { namespace: TARGET, ..write }));
        };
        match next(10) {
            0 => both(Write { namespace: SOURCE, n: keys + n, version: Some(version) }),
            1 => both(Write { namespace: SOURCE, n, version: None }),
            _ => both(Write { namespace: SOURCE, n, version: Some(version) }),
        }
    }
    writes.sort_by_key(|(at, _)| *at);
    writes
}

#[test]
fn writes_during_the_scan_make_no_false_finding() {
    let seeds = std::env::var("CUTOVER_TEST_SEEDS").map_or(51, |text| text.parse().unwrap());
    let (keys, planted) = (600, BTreeMap::from([(10, Kind::Missing), (250, Kind::Token), (400, Kind::Version)]));
    for seed in 0..seeds {
        // A twentieth of the real limit: the scan takes minutes and the world moves on meanwhile.
        let world = Namespaces::start(Some(60));
        world.fill(keys, &planted);
        let writes = traffic(seed, keys, world.now(), 12 * MINUTE_MS);
        let count = writes.len();
        world.schedule(writes);
        let began = world.now();
        if seed == 0 {
            // Looked at only once, the two sides seem to differ here and there.
            let once = world.verify(Depth::Full, &Rules { look_again_ms: None, ..rules() });
            let seemed = once.counts.differing() as usize;
            assert!(seemed > 2 * planted.len(), "{seemed}");
            continue;
        }
        let mut report = world.verify(Depth::Full, &rules());
        assert!(world.now().since(began) > 3 * MINUTE_MS && world.written() > 200, "{} of {count}", world.written());
        let found: Vec<String> =
            findings(&mut report).iter().map(|finding| format!("{} {}", finding.key, shown(finding))).collect();
        let expected: Vec<String> =
            planted.iter().map(|(n, kind)| format!("{} {}", Entry::new(*n).key(), kind.finding())).collect();
        assert_eq!(found, expected, "seed {seed}");
        assert_eq!(report.counts.of(Outcome::Settling), 0);
    }
}

#[test]
fn pages_without_keys_hide_nothing_while_others_write() {
    let planted = BTreeMap::from([(10, Kind::Missing), (250, Kind::Version)]);
    for seed in 0..3 {
        let world = Namespaces::sparse(Some(60), 8);
        world.fill(600, &planted);
        // A look at few keys, as when nobody writes, lists each of them.
        let lasting_ms = if seed == 0 { 0 } else { 12 * MINUTE_MS };
        world.schedule(traffic(seed, 600, world.now(), lasting_ms));
        let mut report = world.verify(Depth::Keys, &rules());
        let found: Vec<String> = findings(&mut report).iter().map(|f| format!("{} {}", f.key, shown(f))).collect();
        let expected: Vec<String> =
            planted.iter().map(|(n, kind)| format!("{} {}", Entry::new(*n).key(), kind.finding())).collect();
        assert_eq!(found, expected, "seed {seed}");
        assert_eq!(report.diagnostics.total, 0);
    }
}

#[test]
fn a_key_that_never_comes_to_rest_is_neither_a_match_nor_a_difference() {
    let world = Namespaces::start(Some(60));
    world.fill(20, &BTreeMap::new());
    let from = world.now();
    // The two sides are written in turns and never say the same.
    let writes = (0..600).map(|n| {
        let namespace = if n % 2 == 0 { SOURCE } else { TARGET };
        (from.plus_ms(n * 4_000), Write { namespace, n: 7, version: Some(10 + n as u64) })
    });
    world.schedule(writes.collect());
    let mut report = world.verify(Depth::Full, &rules());
    let found = findings(&mut report);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].outcome, found[0].key.as_str()), (Outcome::Settling, Entry::new(7).key().as_str()));
    assert_eq!(report.verdict().0, 4);
}

#[test]
fn the_requests_are_the_fewest_there_can_be_and_stay_within_the_limit() {
    let entries = 100_000;
    let planted: BTreeMap<usize, Kind> = [(3, Kind::Missing), (50_000, Kind::Version), (99_998, Kind::Extra)].into();
    let sample = Sample { per_million: 20_000, seed: 5 };
    let sampled = (0..entries).filter(|n| sample.takes(&Entry::new(*n).key())).count() as u64;
    let world = Namespaces::start(Some(1_200));
    world.fill(entries, &BTreeMap::new());
    for (depth, least) in [
        (Depth::Keys, 2 * 100),
        (Depth::Sampled(sample), 2 * (100 + sampled.div_ceil(100))),
        (Depth::Full, 2 * (100 + 1_000)),
    ] {
        let before = world.all_requests();
        let report = world.verify(depth, &rules());
        assert_eq!(report.verdict(), (0, "no differences".to_owned()));
        assert_eq!(report.counts.of(Outcome::Match), entries as u64);
        let asked = world.all_requests() - before;
        assert!(asked >= least && asked as f64 <= 1.05 * least as f64, "{depth:?}: {asked} for {least}");
    }

    // What differs is looked at again, and that fits too.
    world.plant(&planted);
    let before = world.all_requests();
    let report = world.verify(Depth::Keys, &rules());
    assert_eq!(report.counts.differing(), planted.len() as u64);
    assert!((world.all_requests() - before) as f64 <= 1.05 * 200.0);
}

/// What a run over both namespaces takes at most, in KiB, and how it ended.
fn peak_kib(world: &Namespaces) -> (u64, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let args = ["kv:source", "kv:target", "--level", "full", "--policy", "policy.toml", "--settle", "1s"];
    let mut child = world.command(folder.path(), &args).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak);
        if let Some(status) = child.try_wait().unwrap() {
            return (peak, status.code());
        }
        std::thread::yield_now();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_number_of_keys() {
    let world = Namespaces::start(None);
    world.fill(10_000, &BTreeMap::new());
    let (few, code) = peak_kib(&world);
    assert!(code == Some(0) && few > 1_000, "{few} {code:?}");
    world.fill(60_000, &BTreeMap::new());
    let (many, code) = peak_kib(&world);
    assert_eq!(code, Some(0));
    assert!(many < few + 8 * 1_024, "{few} KiB for 10,000 keys, {many} for 60,000");
}

#[test]
fn a_run_that_is_killed_again_and_again_gives_the_same_report() {
    let world = Namespaces::start(None);
    let planted: BTreeMap<usize, Kind> = (0..60).map(|n| (n * 131 + 7, KINDS[n % KINDS.len()])).collect();
    world.fill(8_000, &planted);
    let folder = tempfile::tempdir().unwrap();
    let args = ["kv:source", "kv:target", "--level", "full", "--policy", "policy.toml", "--settle", "1s", "--diff"];
    let whole = world.command(folder.path(), &args).output().unwrap();
    assert_eq!(whole.status.code(), Some(3), "{}", String::from_utf8_lossy(&whole.stderr));

    let run = folder.path().join("run.json");
    let (mut kills, mut seen, mut after_the_pass) = (0, Vec::new(), false);
    let resumed = loop {
        let mut child = match kills {
            0 => world.command(folder.path(), &[&args[..], &["--checkpoint", "run.json"]].concat()),
            _ => world.command(folder.path(), &["--resume", "run.json"]),
        };
        let mut child = child.args(["--checkpoint-every", "150k"]).spawn().unwrap();
        // Also when the pass is over and the differences are waited for.
        while kills < 40 && child.try_wait().unwrap().is_none() {
            let now = std::fs::read(&run).unwrap_or_default();
            if now != seen && !now.is_empty() {
                child.kill().unwrap();
                after_the_pass |= String::from_utf8_lossy(&now).contains("\"phase\":\"compared\"");
                seen = now;
            }
            std::thread::yield_now();
        }
        let output = child.wait_with_output().unwrap();
        if output.status.code().is_some() {
            break output;
        }
        kills += 1;
    };
    assert!(kills >= 5, "killed only {kills} times");
    assert!(after_the_pass, "no kill came while the differences were waited for");
    assert_eq!(resumed.status.code(), Some(3), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert_eq!(String::from_utf8_lossy(&resumed.stdout), String::from_utf8_lossy(&whole.stdout));
}

#[test]
fn a_cursor_that_is_forgotten_costs_a_new_listing_and_no_key() {
    let world = Namespaces::start(None);
    world.fill(3_500, &BTreeMap::from([(3_400, Kind::Missing)]));
    world.forget_cursors_after(2);
    let mut report = world.verify(Depth::Keys, &rules());
    assert_eq!(report.counts.entries, [3_500, 3_499]);
    assert_eq!(findings(&mut report).len(), 1);
    assert_eq!(report.diagnostics.total, 0);
}

#[test]
fn verifying_through_the_library_writes_nothing() {
    let world = Namespaces::start(None);
    world.fill(500, &BTreeMap::from([(5, Kind::Token)]));
    let before = world.ledger();
    world.verify(Depth::Full, &rules());
    let after = world.ledger();
    assert_eq!(before.kv_writes, after.kv_writes);
    assert_eq!(after.requests["cloudflare"].keys().collect::<Vec<_>>(), ["GET", "POST", "PUT"]);
    assert_eq!(before.requests["cloudflare"]["PUT"], after.requests["cloudflare"]["PUT"]);
}
