//! The plan as a comment on a pull request.

use std::fmt::Write as _;

use super::{
    Footnotes, Plan, Route, Section, count, granted, grouped, headline, note_text, quiet, reading_order, way_back,
};

/// Tables that fold, so that a long plan stays a short comment.
pub fn markdown(plan: &Plan) -> String {
    let sections = reading_order(plan);
    let notes = Footnotes::of(sections.iter().flat_map(|(_, rows)| rows.iter().copied()));
    let s = &plan.summary;
    let mut out = format!("## Cutover plan `{}`: {}\n\n", plan.id, headline(plan));
    let _ = writeln!(
        out,
        "{} of {}. {} by people, {} of them final. Made {} UTC, expires {} UTC.\n",
        count(s.connections, "connection", "connections"),
        count(s.tenants, "tenant", "tenants"),
        count(s.consents, "consent", "consents"),
        grouped(s.final_at_consent),
        plan.created_at.to_minute(),
        plan.expires_at.to_minute()
    );
    out.push_str("| Route | Triplets |\n|---|---:|\n");
    for route in Route::ALL {
        let _ = writeln!(out, "| `{}` | {} |", route.name(), grouped(s.of(route)));
    }
    for note in &plan.notes {
        let _ = writeln!(out, "\n> **Note:** {}", escape(&note_text(note)));
    }
    for (section, rows) in &sections {
        let _ = writeln!(out, "\n### {}\n", section.title());
        if let Section::Wave(wave) = section {
            if let Some(from) = wave.not_before {
                let _ = writeln!(out, "Not before {} UTC.", from.to_minute());
            }
            if let Some(to) = wave.not_after {
                let _ = writeln!(out, "Not after {} UTC.", to.to_minute());
            }
            for (i, step) in wave.steps.iter().enumerate() {
                let _ = writeln!(out, "{}. {}", i + 1, step.text());
            }
            out.push_str("\n<details><summary>Rows</summary>\n\n");
            out.push_str("| Triplet | From | To | Scopes | Way back | Quiet window | Hazards | People |\n");
            out.push_str("|---|---|---|---|---|---|---|---|\n");
        } else {
            out.push_str("| Triplet | From | Why | Hazards | People |\n|---|---|---|---|---|\n");
        }
        for row in rows {
            let hazards = row.hazards.iter().map(|h| format!("h{}", notes.hazards.of(h)));
            let actions = row.actions.iter().map(|a| format!("p{}", notes.actions.of(a)));
            let (hazards, actions) = (hazards.collect::<Vec<_>>().join(" "), actions.collect::<Vec<_>>().join(" "));
            let from = format!("{} {}", code(&row.integration_key), code(&row.connection_id));
            if row.wave.is_some() {
                let scopes = row.scopes.iter().map(|s| code(s)).collect::<Vec<_>>().join(" ");
                let _ = writeln!(
                    out,
                    "| {} | {from} | {} | {scopes} ({}) | {} | {} | {hazards} | {actions} |",
                    code(&row.triplet.to_string()),
                    row.toolkit.as_deref().map_or(String::new(), code),
                    escape(&granted(row)),
                    way_back(row),
                    quiet(row),
                );
            } else {
                let why = row.reasons.iter().map(|r| escape(&r.text())).collect::<Vec<_>>().join(" ");
                let triplet = code(&row.triplet.to_string());
                let _ = writeln!(out, "| {triplet} | {from} | {why} | {hazards} | {actions} |");
            }
        }
        if matches!(section, Section::Wave(_)) {
            out.push_str("\n</details>\n");
        }
    }
    out.push_str("\n### Hazards\n\n");
    for (i, (hazard, rows)) in notes.hazards.items.iter().enumerate() {
        let rows = count(*rows as u64, "row", "rows");
        let _ = writeln!(out, "- **h{}** {} ({rows})", i + 1, escape(&hazard.text()));
    }
    out.push_str("\n### What people must do\n\n");
    for (i, (action, rows)) in notes.actions.items.iter().enumerate() {
        let rows = count(*rows as u64, "row", "rows");
        let _ = writeln!(out, "- [ ] **p{}** {} ({rows})", i + 1, escape(&action.text()));
    }
    budget(&mut out, plan);
    out
}

fn budget(out: &mut String, plan: &Plan) {
    let b = &plan.budget;
    out.push_str("\n### Budget\n\n");
    out.push_str(
        "| Requests | To mirror | Soak a day | A verification | To switch | Left a minute | Limit a minute |\n",
    );
    out.push_str("|---|---:|---:|---:|---:|---:|---:|\n");
    for api in &b.apis {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} |",
            api.api.name(),
            grouped(api.apply),
            grouped(api.soak_per_day),
            grouped(api.verify),
            grouped(api.switch),
            grouped(api.available_per_minute),
            grouped(api.limit_per_minute)
        );
    }
    let _ = writeln!(
        out,
        "\n{} USD a month now, {} during the soak, {} afterwards (prices of {}).",
        b.usd_now, b.usd_soak, b.usd_after, b.prices_as_of
    );
}

/// Text that came from outside must not become a table cell, a tag or a mention.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ").replace('@', "@\u{200b}")
}

/// A code span: needs nothing escaped but what ends it or the cell.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('`', "'").replace('|', "\\|").replace(['\n', '\r'], " "))
}
