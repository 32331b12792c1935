//! The readers of policies, catalogues and saved plans, under changed and arbitrary input.
//!
//! The number of cases follows `PROPTEST_CASES`, so that a long run is one variable away.

use cutover::catalogue::Catalogue;
use cutover::plan::{Plan, Policy};
use proptest::prelude::*;

const PLAN: &str = include_str!("../plans/adr-038.json");
const POLICY: &str = include_str!("../plans/policy.toml");
const CATALOGUE: &str = cutover::catalogue::BUILT_IN;

/// A valid text with a few bytes cut, doubled or replaced.
fn mutated(text: &'static str) -> impl Strategy<Value = String> {
    let edit = (0..text.len(), 0..40usize, ".{0,8}", 0..3u8);
    prop::collection::vec(edit, 1..4).prop_map(move |edits| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, length, insert, kind) in edits {
            let at = at.min(bytes.len());
            let end = (at + length).min(bytes.len());
            let piece = match kind {
                0 => Vec::new(),
                1 => bytes[at..end].repeat(2),
                _ => insert.into_bytes(),
            };
            bytes.splice(at..end, piece);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    /// A saved plan is read whole and unchanged, or refused; a changed one is never taken for the original.
    #[test]
    fn a_changed_plan_is_refused_and_never_panics(text in mutated(PLAN)) {
        if let Ok(plan) = Plan::from_json(&text) {
            // What is left are changes of white space between tokens.
            prop_assert_eq!(plan.to_json(), Plan::from_json(PLAN).unwrap().to_json());
        }
    }

    #[test]
    fn no_policy_makes_the_reader_panic(text in prop_oneof![mutated(POLICY), "(?s).{0,400}"]) {
        if let Err(error) = Policy::from_toml(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_catalogue_makes_the_reader_panic(text in prop_oneof![mutated(CATALOGUE), "(?s).{0,400}"]) {
        if let Err(error) = Catalogue::built_in().extend(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_text_makes_the_plan_reader_panic(text in "(?s).{0,400}") {
        prop_assert!(Plan::from_json(&text).is_err());
    }
}
