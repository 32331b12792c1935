//! Which triplets are shown, and in which order.

use super::picture::{Picture, TripletLine};
use crate::domain::time::Timestamp;

/// What the table is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Column {
    /// What needs a person first: dead grants and letters, held, ended tokens, then the triplet.
    #[default]
    Trouble,
    Triplet,
    Stage,
    /// How much of the token's life is over.
    Age,
    /// End of the reverse window.
    Reversible,
}

impl Column {
    const ALL: [Self; 5] = [Self::Trouble, Self::Triplet, Self::Stage, Self::Age, Self::Reversible];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Trouble => "trouble",
            Self::Triplet => "triplet",
            Self::Stage => "stage",
            Self::Age => "age",
            Self::Reversible => "reversible",
        }
    }

    /// The next one, round and round.
    pub fn next(self) -> Self {
        let at = Self::ALL.iter().position(|c| *c == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }
}

/// How many things about a triplet want a person's eyes.
pub fn trouble(t: &TripletLine, at: Timestamp) -> u8 {
    let dead = t.sinks.iter().any(|s| s.dead);
    let ended = t.expires_at.is_some_and(|end| end < at);
    let differs = t.verify.as_ref().is_some_and(|v| !v.clean);
    u8::from(t.dead_grant.is_some()) * 16
        + u8::from(dead) * 8
        + u8::from(t.held.is_some()) * 4
        + u8::from(ended) * 2
        + u8::from(differs)
}

/// Indices into `picture.triplets` of the rows that `filter` keeps, sorted. Every word of the filter
/// must occur in the triplet, its stage, an authority, its verify outcome or the reason it is held.
pub fn arrange(picture: &Picture, filter: &str, by: Column, descending: bool) -> Vec<usize> {
    let words: Vec<String> = filter.split_whitespace().map(str::to_lowercase).collect();
    let rows = &picture.triplets;
    let mut shown: Vec<usize> = (0..rows.len()).filter(|&i| keeps(&rows[i], &words)).collect();
    let name = |i: usize| rows[i].triplet.as_str();
    match by {
        Column::Trouble => {
            shown.sort_by_cached_key(|&i| (std::cmp::Reverse(trouble(&rows[i], picture.at)), name(i).to_owned()));
        }
        Column::Triplet => shown.sort_by(|&a, &b| name(a).cmp(name(b))),
        Column::Stage => shown.sort_by(|&a, &b| (rows[a].stage_rank, name(a)).cmp(&(rows[b].stage_rank, name(b)))),
        Column::Age => shown.sort_by(|&a, &b| {
            let spent = |i: usize| rows[i].spent(picture.at).unwrap_or(-1.0);
            spent(b).total_cmp(&spent(a)).then_with(|| name(a).cmp(name(b)))
        }),
        Column::Reversible => shown.sort_by(|&a, &b| {
            let end = |i: usize| rows[i].reversible_until.map_or(i64::MAX, Timestamp::millis);
            end(a).cmp(&end(b)).then_with(|| name(a).cmp(name(b)))
        }),
    }
    if descending {
        shown.reverse();
    }
    shown
}

fn keeps(t: &TripletLine, words: &[String]) -> bool {
    words.iter().all(|word| {
        let fields = [&t.triplet, &t.stage, &t.refresh, &t.read];
        let more = [t.verify.as_ref().map(|v| &v.text), t.held.as_ref(), t.dead_grant.as_ref()].into_iter().flatten();
        fields.into_iter().chain(more).any(|f| f.to_lowercase().contains(word))
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn names(picture: &Picture, filter: &str, by: Column, descending: bool) -> Vec<String> {
        arrange(picture, filter, by, descending).into_iter().map(|i| picture.triplets[i].triplet.clone()).collect()
    }

    #[test]
    fn trouble_comes_first_and_the_rest_by_name() {
        let picture = sample::picture(40);
        let order = arrange(&picture, "", Column::Trouble, false);
        let ranks: Vec<u8> = order.iter().map(|&i| trouble(&picture.triplets[i], picture.at)).collect();
        assert!(ranks.is_sorted_by(|a, b| a >= b) && ranks[0] > 0, "{ranks:?}");
    }

    #[test]
    fn every_word_of_the_filter_must_occur_somewhere() {
        let picture = sample::picture(40);
        let all = names(&picture, "", Column::Triplet, false);
        let some = names(&picture, "GMAIL mirroring", Column::Triplet, false);
        assert!(!some.is_empty() && some.len() < all.len());
        assert!(some.iter().all(|n| n.contains("gmail")));
        assert!(names(&picture, "no-such-word", Column::Triplet, false).is_empty());
    }

    #[test]
    fn descending_is_the_same_list_backwards() {
        let picture = sample::picture(40);
        for column in Column::ALL {
            let mut up = names(&picture, "", column, false);
            up.reverse();
            assert_eq!(up, names(&picture, "", column, true), "{}", column.name());
        }
    }
}
