//! The soak as lines of text, for pipes and logs: one summary a picture, and what changed.

use std::collections::BTreeMap;

use super::picture::{Picture, short};
use crate::domain::criteria::Verdict;
use crate::domain::time::Timestamp;

/// Remembers what was said, so that only changes are said again.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    verdicts: BTreeMap<String, Verdict>,
    event: Option<Timestamp>,
}

impl Lines {
    /// The lines for a new picture.
    pub fn of(&mut self, p: &Picture) -> String {
        let mut text = String::new();
        let pending: u64 = p.sinks.iter().map(|s| s.pending).sum();
        let oldest = p.sinks.iter().map(|s| s.oldest_ms).max().unwrap_or(0);
        let passed = p.criteria.iter().filter(|c| c.verdict == Verdict::Pass).count();
        text.push_str(&format!(
            "{} {} {} criteria={passed}/{} triplets={} pending={pending} oldest={} dead={}\n",
            p.at.to_rfc3339(),
            p.verdict().name(),
            p.progress().replace(' ', "_"),
            p.criteria.len(),
            p.triplets.len(),
            short(oldest),
            p.dead_letters.len(),
        ));
        for c in &p.criteria {
            let now = c.verdict;
            if let Some(before) = self.verdicts.insert(c.id.clone(), now)
                && before != now
            {
                let (id, reason) = (&c.id, &c.reason);
                text.push_str(&format!("  {id}: {} -> {}: {reason}\n", before.name(), now.name()));
            }
        }
        // The first picture brings the whole trail: that is not news.
        if let Some(last) = self.event {
            for e in p.events.iter().filter(|e| e.at > last) {
                text.push_str(&format!("  {} {} {}\n", e.at.to_rfc3339(), e.subject, e.text));
            }
        }
        self.event = p.events.iter().map(|e| e.at).max().or(self.event).or(Some(p.at));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn only_changes_follow_the_summary() {
        let mut lines = Lines::default();
        let mut picture = sample::picture(12);
        assert_eq!(lines.of(&picture).lines().count(), 1, "the first picture is no news");
        assert_eq!(lines.of(&picture).lines().count(), 1);
        picture.criteria[1].verdict = Verdict::Fail;
        picture.events.push(super::super::picture::EventLine {
            at: picture.at.plus_ms(1),
            subject: "acme:slack:2".to_owned(),
            text: "held".to_owned(),
            bad: false,
        });
        let said = lines.of(&picture);
        assert!(said.contains("invalid-grant: pass -> fail") && said.contains("acme:slack:2 held"), "{said}");
        assert_eq!(said.lines().count(), 3);
    }
}
