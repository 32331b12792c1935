//! The plan as people read it on a terminal: what moves, wave by wave, then what it takes.

use super::{
    Footnotes, Plan, PlanRow, Route, Section, cost, count, granted, grouped, headline, note_text, quiet, reading_order,
    way_back,
};
use crate::text::{Paint, wrap};

/// At most 100 columns; without colour the same plan always gives the same bytes.
pub fn text(plan: &Plan, paint: Paint) -> String {
    let sections = reading_order(plan);
    let notes = Footnotes::of(sections.iter().flat_map(|(_, rows)| rows.iter().copied()));
    let mut out = String::new();
    summary(&mut out, plan, paint);
    for (section, rows) in &sections {
        out.push('\n');
        out.push_str(&paint.bold(&section.title()));
        out.push('\n');
        if let Section::Wave(wave) = section {
            if let Some(from) = wave.not_before {
                wrap(&mut out, "  starts no earlier than ", &format!("{} UTC", from.to_minute()));
            }
            if let Some(to) = wave.not_after {
                wrap(&mut out, "  starts no later than ", &format!("{} UTC", to.to_minute()));
            }
            for (i, step) in wave.steps.iter().enumerate() {
                wrap(&mut out, &format!("  {:>2}. ", i + 1), &step.text());
            }
        }
        rows.iter().for_each(|row| self::row(&mut out, row, &notes, paint));
    }
    explain(&mut out, &notes, paint);
    budget(&mut out, plan, paint);
    for note in &plan.notes {
        wrap(&mut out, "  note  ", &note_text(note));
    }
    let s = &plan.summary;
    out.push('\n');
    let totals = format!(
        "Plan: {} to move by consent, {} to copy, {} to stay, {} blocked; {} cannot go back once consented.",
        grouped(s.reconsent),
        grouped(s.static_),
        grouped(s.retain),
        grouped(s.blocked),
        grouped(s.final_at_consent),
    );
    wrap(&mut out, "", &totals);
    wrap(&mut out, "", "Save it with `--out PLAN.json`, then carry it out with `cutover apply PLAN.json`.");
    out
}

fn summary(out: &mut String, plan: &Plan, paint: Paint) {
    let s = &plan.summary;
    out.push_str(&paint.bold(&format!("Plan {}: {}", plan.id, headline(plan))));
    out.push('\n');
    let made = format!("made {} UTC, expires {} UTC", plan.created_at.to_minute(), plan.expires_at.to_minute());
    wrap(out, "  ", &made);
    let what = format!(
        "{} of {} feed {}; {} by people, {} of them final",
        count(s.connections, "connection", "connections"),
        count(s.tenants, "tenant", "tenants"),
        count(s.triplets, "triplet", "triplets"),
        count(s.consents, "consent", "consents"),
        grouped(s.final_at_consent),
    );
    wrap(out, "  ", &what);
    out.push('\n');
    for (route, what) in [
        (Route::Reconsent, "mirrored during the soak, then consent at Composio"),
        (Route::Static, "copied once and verified"),
        (Route::Retain, "stay with the gateway"),
        (Route::Blocked, "wait for a decision"),
    ] {
        let line = format!("  {} {:<9} {:>7}  {what}", symbol(route), route.name(), grouped(s.of(route)));
        out.push_str(&tint(route, s.of(route) > 0, &line, paint));
        out.push('\n');
    }
}

const fn symbol(route: Route) -> char {
    match route {
        Route::Reconsent => '~',
        Route::Static => '+',
        Route::Retain => '=',
        Route::Blocked => '!',
    }
}

fn tint(route: Route, any: bool, line: &str, paint: Paint) -> String {
    match route {
        _ if !any => line.to_owned(),
        Route::Reconsent => paint.yellow(line),
        Route::Static => paint.green(line),
        Route::Retain => line.to_owned(),
        Route::Blocked => paint.red(line),
    }
}

fn row(out: &mut String, row: &PlanRow, notes: &Footnotes<'_>, paint: Paint) {
    let target = row.toolkit.as_deref().map_or(String::new(), |toolkit| format!(" → {toolkit}"));
    let mut head = String::new();
    wrap(
        &mut head,
        &format!("  {} ", symbol(row.route)),
        &format!("{}  ({}{target}, {})", row.triplet, row.integration_key, row.route.name()),
    );
    out.push('\n');
    out.push_str(&tint(row.route, true, head.trim_end_matches('\n'), paint));
    out.push('\n');
    for (i, reason) in row.reasons.iter().enumerate() {
        wrap(out, if i == 0 { "      why       " } else { "                " }, &reason.text());
    }
    wrap(out, "      grant     ", &row.connection_id);
    if row.route.moves() {
        let scopes = if row.scopes.is_empty() { "none".to_owned() } else { row.scopes.join(" ") };
        wrap(out, "      scopes    ", &format!("{scopes} ({})", granted(row)));
        wrap(out, "      way back  ", &way_back(row));
        wrap(out, "      quiet     ", &quiet(row));
        wrap(out, "      cost      ", &cost(row));
    }
    let numbers =
        |prefix: &str, n: Vec<usize>| n.iter().map(|n| format!("[{prefix}{n}]")).collect::<Vec<_>>().join(" ");
    if !row.hazards.is_empty() {
        let of = row.hazards.iter().map(|h| notes.hazards.of(h)).collect();
        wrap(out, "      hazards   ", &numbers("h", of));
    }
    if !row.actions.is_empty() {
        let of = row.actions.iter().map(|a| notes.actions.of(a)).collect();
        wrap(out, "      people    ", &numbers("p", of));
    }
}

fn explain(out: &mut String, notes: &Footnotes<'_>, paint: Paint) {
    let mut list = |title: &str, prefix: &str, items: Vec<(String, usize)>| {
        if items.is_empty() {
            return;
        }
        out.push('\n');
        out.push_str(&paint.bold(title));
        out.push('\n');
        for (i, (text, rows)) in items.into_iter().enumerate() {
            let number = format!("[{prefix}{}]", i + 1);
            wrap(out, &format!("  {number:<6}"), &format!("{text} ({})", count(rows as u64, "row", "rows")));
        }
    };
    list("Hazards", "h", notes.hazards.items.iter().map(|(h, n)| (h.text(), *n)).collect());
    list("What people must do", "p", notes.actions.items.iter().map(|(a, n)| (a.text(), *n)).collect());
}

fn budget(out: &mut String, plan: &Plan, paint: Paint) {
    let b = &plan.budget;
    out.push('\n');
    out.push_str(&paint.bold("Budget"));
    out.push_str("\n  requests      to mirror   soak/day   soak/min   verify     switch   left/min   limit/min\n");
    for api in &b.apis {
        let line = format!(
            "  {:<12}{:>11}{:>11}{:>11}{:>9}{:>11}{:>11}{:>12}\n",
            api.api.name(),
            grouped(api.apply),
            grouped(api.soak_per_day),
            grouped(api.soak_per_minute()),
            grouped(api.verify),
            grouped(api.switch),
            grouped(api.available_per_minute),
            grouped(api.limit_per_minute)
        );
        out.push_str(&line);
    }
    wrap(
        out,
        "  time      ",
        &format!(
            "{} min of requests until the mirror stands, {} min for consents and switches, the people not counted",
            grouped(b.minutes_apply),
            grouped(b.minutes_switch)
        ),
    );
    wrap(
        out,
        "  a month   ",
        &format!(
            "{} USD now, {} USD during the soak, {} USD afterwards (prices of {})",
            b.usd_now, b.usd_soak, b.usd_after, b.prices_as_of
        ),
    );
    wrap(
        out,
        "  KV        ",
        &format!(
            "{} reads, {} writes, {} lists a month of soak",
            grouped(b.kv_reads_per_month),
            grouped(b.kv_writes_per_month),
            grouped(b.kv_lists_per_month)
        ),
    );
}
