//! What `/metrics` shows: counts of this process, and the state of the world as the last snapshot
//! has it. Names and meanings are in `docs/shim.md`.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::domain::time::SECOND_MS;
use crate::status::Snapshot;

/// Upper bounds, in seconds, of the buckets for the time from a request to its commit.
const COMMIT_BOUNDS_S: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    source: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SinkLabels {
    sink: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NameLabels {
    name: String,
}

type Gauges<L> = Family<L, Gauge<i64, AtomicI64>>;

/// Counters that the routes add to.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RouteLabels, Counter<u64, AtomicU64>>,
    intake: Family<OutcomeLabels, Counter<u64, AtomicU64>>,
    commit: Histogram,
    shown: Shown,
}

/// Gauges that are set from a snapshot.
#[derive(Debug, Default)]
struct Shown {
    ready: Gauge<i64, AtomicI64>,
    stages: Gauges<NameLabels>,
    pending: Gauges<SinkLabels>,
    oldest_s: Gauges<SinkLabels>,
    dead: Gauges<SinkLabels>,
    circuit_open: Gauges<SinkLabels>,
    classes: Gauges<NameLabels>,
    results: Gauges<NameLabels>,
    counters: Gauges<NameLabels>,
    down_s: Gauges<NameLabels>,
    budgets: Gauges<NameLabels>,
    next_expiry_s: Gauge<i64, AtomicI64>,
    alerts_waiting: Gauge<i64, AtomicI64>,
    dead_grants: Gauge<i64, AtomicI64>,
    soak_s: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cutover");
        let (requests, intake) = (Family::default(), Family::default());
        let commit = Histogram::new(COMMIT_BOUNDS_S);
        let shown = Shown::default();
        registry.register("requests", "Requests that were answered, by route and status", requests.clone());
        registry.register("intake", "What came in and what became of it", intake.clone());
        registry.register_with_unit("commit", "From a request to its commit", Unit::Seconds, commit.clone());
        registry.register("ready", "1 when the journal can commit", shown.ready.clone());
        registry.register("triplets", "Triplets by stage of custody", shown.stages.clone());
        registry.register("deliveries_pending", "Deliveries that wait, by sink", shown.pending.clone());
        let help = "Age of the oldest delivery that waits, by sink";
        registry.register_with_unit("delivery_oldest", help, Unit::Seconds, shown.oldest_s.clone());
        registry.register("dead_letters", "Deliveries that were given up, by sink", shown.dead.clone());
        registry.register("circuit_open", "1 while a sink is left alone after failures", shown.circuit_open.clone());
        registry.register("mirror_triplets", "Where the newest version of each triplet is", shown.classes.clone());
        let help = "First results of versions at both sides since the start";
        registry.register("mirror_results", help, shown.results.clone());
        registry.register("evidence", "The counters that the criteria are judged on", shown.counters.clone());
        registry.register_with_unit("outage", "How long an API is out of reach", Unit::Seconds, shown.down_s.clone());
        registry.register(
            "budget_left",
            "Requests that may go to an API now, urgent ones included",
            shown.budgets.clone(),
        );
        let help = "Until the first token that KV serves ends; negative when one has ended";
        registry.register_with_unit("next_expiry", help, Unit::Seconds, shown.next_expiry_s.clone());
        registry.register("alerts_waiting", "Alerts that are not sent yet", shown.alerts_waiting.clone());
        registry.register("dead_grants", "Triplets whose grant is gone", shown.dead_grants.clone());
        registry.register_with_unit("soak", "How long the soak clock has run", Unit::Seconds, shown.soak_s.clone());
        Self { registry, requests, intake, commit, shown }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&RouteLabels { route, status }).inc();
    }

    /// Something came in from `source` (`nango`, `composio`, `tokens`).
    pub fn took(&self, source: &'static str, outcome: &'static str) {
        self.intake.get_or_create(&OutcomeLabels { source, outcome }).inc();
    }

    /// A commit took this long, from the request on.
    pub fn committed(&self, ms: i64) {
        self.commit.observe(ms.max(0) as f64 / SECOND_MS as f64);
    }

    /// The text that Prometheus reads, with the state of `snapshot` in it; without one the shim is not ready.
    pub fn text(&self, snapshot: Option<&Snapshot>) -> String {
        let shown = &self.shown;
        shown.ready.set(i64::from(snapshot.is_some_and(|s| s.header.ready)));
        if let Some(snapshot) = snapshot {
            self.show(snapshot);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }

    fn show(&self, snapshot: &Snapshot) {
        let shown = &self.shown;
        let set = |family: &Gauges<NameLabels>, name: &str, value: i64| {
            family.get_or_create(&NameLabels { name: name.to_owned() }).set(value);
        };
        // What is no longer there must not go on showing its last value.
        for family in [&shown.stages, &shown.down_s, &shown.budgets] {
            family.clear();
        }
        snapshot.header.stages.iter().for_each(|(stage, n)| set(&shown.stages, stage, *n as i64));
        snapshot.header.outages.iter().for_each(|(api, ms)| set(&shown.down_s, api, ms / SECOND_MS));
        snapshot.header.counters.iter().for_each(|(name, n)| set(&shown.counters, name, *n));
        snapshot.classes.each().into_iter().for_each(|(class, n)| set(&shown.classes, class, n as i64));
        snapshot.results.each().into_iter().for_each(|(class, n)| set(&shown.results, class, n as i64));
        for budget in &snapshot.budgets {
            let name = budget.host.as_ref().map_or(budget.api.to_owned(), |host| format!("{}:{host}", budget.api));
            set(&shown.budgets, &name, i64::from(budget.left_urgent));
        }
        for sink in &snapshot.sinks {
            let labels = SinkLabels { sink: sink.name };
            shown.pending.get_or_create(&labels).set(sink.pending as i64);
            shown.oldest_s.get_or_create(&labels).set(sink.oldest_ms / SECOND_MS);
            shown.dead.get_or_create(&labels).set(sink.dead as i64);
            shown.circuit_open.get_or_create(&labels).set(i64::from(sink.open_until.is_some()));
        }
        if let Some(at) = snapshot.header.served_until {
            shown.next_expiry_s.set(at.since(snapshot.header.at) / SECOND_MS);
        }
        shown.alerts_waiting.set(snapshot.header.alerts_waiting as i64);
        shown.dead_grants.set(snapshot.header.dead_grants as i64);
        shown.soak_s.set(snapshot.header.soaked_ms.unwrap_or(0) / SECOND_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_buckets_are_in_the_text() {
        let metrics = Metrics::default();
        metrics.answered("/healthz", 200);
        metrics.took("nango", "accepted");
        metrics.committed(3);
        let text = metrics.text(None);
        for line in [
            r#"cutover_requests_total{route="/healthz",status="200"} 1"#,
            r#"cutover_intake_total{source="nango",outcome="accepted"} 1"#,
            r#"cutover_commit_seconds_bucket{le="0.005"} 1"#,
            "cutover_ready 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
