//! Many accepted tokens of a triplet, and the few of them that can be the newest.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::{Intake, IntakeKind, Settled, StoreError, StoreResult};
use crate::domain::newest::End;
use crate::domain::secret::Secret;
use crate::domain::token::KvEntry;
use crate::domain::triplet::Triplet;

/// The tokens among `entries` that must be judged, by triplet in the order of arrival.
///
/// Left out is what would be superseded anyway: a token that ends before another one of the same
/// triplet. Two that end at the same time both stay, or a replay of the first would look new; and
/// one that came before is no news, even when what it ended with then was superseded meanwhile. What
/// is known as a replay counts for nothing.
pub(super) fn coalesce(
    entries: &[&Intake],
    replays: &[(Triplet, Secret)],
    settled: &mut Settled,
) -> StoreResult<BTreeMap<Triplet, Vec<KvEntry>>> {
    // What was the newest at some time, and from where on it still is.
    let mut heads: BTreeMap<Triplet, (Vec<KvEntry>, usize)> = BTreeMap::new();
    for intake in entries.iter().filter(|e| e.kind == IntakeKind::Token) {
        let corrupt = |detail: String| StoreError::Corrupt { what: "accepted token", detail };
        let triplet = Triplet::parse(&intake.subject).map_err(|e| corrupt(e.to_string()))?;
        let entry = KvEntry::from_json(&intake.body).map_err(|e| corrupt(e.to_string()))?;
        if replays.iter().any(|(of, token)| *of == triplet && *token == entry.access_token) {
            settled.superseded += 1;
            continue;
        }
        let (seen, from) = heads.entry(triplet).or_default();
        match seen.last().map(|last| End::from(entry.expires_at).cmp(&last.expires_at.into())) {
            Some(Ordering::Less) => settled.superseded += 1,
            Some(Ordering::Equal) if seen.iter().any(|k| k.access_token == entry.access_token) => {
                settled.duplicates += 1;
            }
            Some(Ordering::Greater) => {
                settled.superseded += seen.len() - *from;
                *from = seen.len();
                seen.push(entry);
            }
            Some(Ordering::Equal) | None => seen.push(entry),
        }
    }
    Ok(heads.into_iter().map(|(triplet, (mut seen, from))| (triplet, seen.split_off(from))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::newest::{Arrival, Newest, Origin};
    use crate::domain::time::Timestamp;
    use serde_json::json;

    /// 0: it never ends.
    fn token(subject: &str, token: &str, end_s: i64) -> Intake {
        let body = match end_s {
            0 => json!({"access_token": token}),
            end => json!({"access_token": token, "expires_at": end}),
        };
        let entry = KvEntry::from_json(body.to_string().as_bytes()).unwrap();
        Intake::token(&Triplet::parse(subject).unwrap(), &entry, Timestamp::from_secs(1))
    }

    /// The journal's rule, one token after the other: what is at the end.
    fn head_of<'a>(entries: impl Iterator<Item = &'a KvEntry>) -> Option<&'a KvEntry> {
        let mut newest = Newest::default();
        let is_new = |entry: &&KvEntry| {
            let token = entry.access_token.expose().to_owned();
            newest.arrive(&token, entry.expires_at.into(), Origin::Report) == Arrival::New
        };
        entries.filter(is_new).last()
    }

    proptest::proptest! {
        /// Tokens are few, so that many of them come again; 0 is one without an end.
        #[test]
        fn what_is_left_out_changes_no_head(drawn in proptest::collection::vec((0u8..5, 0i64..4), 0..40)) {
            let entries: Vec<Intake> =
                drawn.iter().map(|&(name, end)| token("a:b:c", &name.to_string(), end)).collect();
            let all: Vec<KvEntry> = entries.iter().map(|e| KvEntry::from_json(&e.body).unwrap()).collect();
            let mut settled = Settled::default();
            let kept = coalesce(&entries.iter().collect::<Vec<_>>(), &[], &mut settled).unwrap();
            let kept = kept.into_values().next().unwrap_or_default();
            proptest::prop_assert_eq!(head_of(kept.iter()), head_of(all.iter()));
            proptest::prop_assert_eq!(kept.len() + settled.superseded + settled.duplicates, all.len());
        }
    }

    /// One by one, the journal knows the first token when it comes again: it was the newest before.
    #[test]
    fn what_was_the_newest_before_is_no_news_when_it_comes_again() {
        let mut settled = Settled::default();
        let entries = [token("a:b:c", "one", 10), token("a:b:c", "two", 20), token("a:b:c", "one", 20)];
        let kept = coalesce(&entries.each_ref(), &[], &mut settled).unwrap().into_values().next().unwrap();
        let kept: Vec<&str> = kept.iter().map(|k| k.access_token.expose()).collect();
        assert_eq!((kept, settled.superseded, settled.duplicates), (vec!["two"], 1, 1));
    }

    #[test]
    fn only_what_ends_last_is_worked_in_and_equals_stay_in_their_order() {
        let mut settled = Settled::default();
        let entries = [
            token("a:b:c", "one", 10),
            token("a:b:c", "two", 20),
            token("a:b:c", "late", 15),
            token("a:b:d", "x", 5),
            token("a:b:c", "three", 20),
            token("a:b:c", "two", 20),
        ];
        let tokens = coalesce(&entries.each_ref(), &[], &mut settled).unwrap();
        let names: Vec<Vec<&str>> =
            tokens.values().map(|kept| kept.iter().map(|e| e.access_token.expose()).collect()).collect();
        assert_eq!(names, [vec!["two", "three"], vec!["x"]]);
        assert_eq!((settled.superseded, settled.duplicates), (2, 1));
    }
}
