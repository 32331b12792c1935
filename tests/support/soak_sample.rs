//! A made-up soak of any size: every stage, every kind of trouble, the same on every call.

use super::domain::criteria::{CRITERIA, Judged, Verdict, WaiverMark};
use super::domain::time::{DAY_MS, HOUR_MS, MINUTE_MS, Timestamp};
use super::picture::{
    BudgetLine, DeadLetterLine, EventLine, Picture, SinkCell, SinkLine, TripletLine, VerifyMark, at_least,
};

/// The instant of the picture.
pub fn at() -> Timestamp {
    Timestamp::parse("2026-05-09T14:30:00Z").expect("a time")
}

/// A soak of `n` triplets.
pub fn picture(n: usize) -> Picture {
    let at = at();
    Picture {
        at,
        plan: Some("p-0123456789ab".to_owned()),
        soaked_ms: Some(3 * DAY_MS + 4 * HOUR_MS),
        gap_ms: 40 * MINUTE_MS,
        needed_ms: 30 * DAY_MS,
        criteria: CRITERIA.iter().enumerate().map(|(i, id)| criterion(i, id)).collect(),
        triplets: (0..n).map(|i| triplet(i, at)).collect(),
        sinks: [
            ("kv.source", 0, 0, None),
            ("kv.target", 3, 0, None),
            ("composio", 41, 1, Some("429 Too Many Requests")),
        ]
        .into_iter()
        .map(|(name, pending, dead, trouble)| SinkLine {
            name: name.to_owned(),
            delivered: 18_230 - pending,
            pending,
            dead,
            oldest_ms: pending as i64 * 7_000,
            trouble: trouble.map(ToOwned::to_owned),
        })
        .collect(),
        budgets: [
            ("nango", 47, 1_000, None),
            ("composio", 0, 2_000, Some(at.plus_ms(9_000))),
            ("cloudflare", 80, 1_200, None),
        ]
        .into_iter()
        .map(|(name, left, limit, closed_until)| BudgetLine {
            name: name.to_owned(),
            left,
            left_urgent: left + 5,
            limit,
            window_ms: MINUTE_MS,
            closed_until,
        })
        .collect(),
        events: (0..60)
            .map(|i| EventLine {
                at: at.plus_ms((i - 60) * 4 * MINUTE_MS),
                subject: format!("acme:gmail:{i}"),
                text: if i % 7 == 0 { "foreign write in kv.source" } else { "backfill delivered" }.to_owned(),
                bad: i % 7 == 0,
            })
            .collect(),
        dead_letters: vec![DeadLetterLine {
            triplet: "acme:gmail:3".to_owned(),
            sink: "composio".to_owned(),
            reason: "the connected account is gone (404)".to_owned(),
        }],
    }
}

fn criterion(i: usize, id: &str) -> Judged {
    let (verdict, observed) = match i {
        0 => (Verdict::Inconclusive, Some(3.2)),
        4 => (Verdict::Fail, Some(22.0)),
        12 => (Verdict::Inconclusive, None),
        _ if at_least(id) => (Verdict::Pass, Some(15.0)),
        _ => (Verdict::Pass, Some(0.0)),
    };
    let waiver = WaiverMark {
        id: "w-1".to_owned(),
        by: "ana".to_owned(),
        reason: "price list is old".to_owned(),
        until: at().plus_ms(23 * DAY_MS),
        scope: "*".to_owned(),
        covered: 0,
    };
    Judged {
        waived: i == 6,
        waivers: if i == 6 { vec![waiver] } else { Vec::new() },
        since: None,
        findings: Vec::new(),
        findings_total: 0,
        id: id.to_owned(),
        verdict,
        observed,
        threshold: if i == 0 { 30.0 } else { 15.0 },
        unit: ["days", "dead grants", "instants", "share", "minutes"].get(i).unwrap_or(&"").to_string(),
        expected_samples: 100,
        samples: 57,
        reason: match verdict {
            Verdict::Pass => "0 in 57 observations",
            Verdict::Inconclusive => "57 of the 100 observations that it needs",
            Verdict::Fail => "nango was out of reach, first at 2026-05-08 03:10: 22m",
        }
        .to_owned(),
    }
}

fn triplet(i: usize, at: Timestamp) -> TripletLine {
    let stages = ["planned", "mirroring", "consented", "verified", "switched", "settled", "retired"];
    let (tenants, providers) = (["acme", "globex", "initech"], ["gmail", "google_drive", "slack", "hubspot"]);
    let stage = if i % 5 < 3 { 1 } else { i % 7 };
    let captured = at.plus_ms(-((i as i64 * 137) % (61 * 60)) * 1_000);
    let cell = |k: usize| SinkCell {
        delivered_at: (i % 11 != 10).then(|| captured.plus_ms(2_000 + k as i64 * 1_000)),
        pending: k == 2 && i % 9 == 4,
        dead: k == 2 && i == 3,
    };
    TripletLine {
        triplet: format!("{}:{}:{i}", tenants[i % 3], providers[i % 4]),
        route: "reconsent".to_owned(),
        stage: stages[stage].to_owned(),
        stage_rank: stage as u8,
        wave: Some(1 + (i % 4) as u32),
        refresh: if stage >= 4 { "composio" } else { "nango" }.to_owned(),
        read: if stage >= 4 { "target" } else { "source" }.to_owned(),
        epoch: 1 + stage as u64,
        version: 70 + (i % 13) as u64,
        captured_at: Some(captured),
        expires_at: Some(captured.plus_ms(HOUR_MS)),
        sinks: (0..3).map(cell).collect(),
        verify: Some(if i % 17 == 5 {
            VerifyMark { clean: false, text: "changed in kv.target".to_owned() }
        } else {
            VerifyMark { clean: true, text: "match".to_owned() }
        }),
        reversible_until: (stage == 4).then(|| at.plus_ms(5 * HOUR_MS)),
        held: (i % 23 == 8).then(|| "another upstream account consented".to_owned()),
        dead_grant: (i % 29 == 11)
            .then(|| "since 2026-05-20 08:10: the provider refuses its unexpired token".to_owned()),
    }
}
