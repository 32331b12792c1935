//! Entries that look alike: the shape of one is learnt and the next ones are held against it.
//!
//! The entries of a dump come from one program, so nearly all consist of the same bytes but for a
//! few plain texts and numbers. A [`Shape`] is the fixed bytes with the slots between them. An
//! entry that fits needs no JSON parser: the fixed bytes were parsed when the shape was learnt,
//! and what stands in the slots is plain (no quote, backslash, control character or non-ASCII
//! byte in a text, nothing but digits in a number), so the entry is sound and its parts are known.
//! Whatever does not fit goes the long way; fitting is never needed for a result, only for its speed.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::entry::{KEY_BYTES_MAX, Scanned};
use super::facts::{Facts, Field, Hidden, SecretFact, moment, print, seconds};
use super::json::{digits_end, plain_end};
use super::learn::{Found, find_slots};
use super::mask::is_masked;
use super::rules::{Place, Rules};

/// How many shapes are kept. Providers differ in the fields they give, and each set has its own.
const SHAPES_MAX: usize = 16;

/// How many slots a shape may have.
const SLOTS_MAX: usize = 64;

/// How many entries are let pass at most before another shape is learnt, while learning is no use.
const WAIT_MAX: u32 = 1023;

/// Where the contents of the slots stand in one entry.
pub(super) type Contents = Vec<(u32, u32)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
}

/// What a slot means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Token,
    ExpiresAt,
    TokenType,
    Scope,
    Expiration,
    /// A field that is compared: its number among those of the facts.
    Field(usize),
    /// A part of a field that is an object or an array.
    Within,
    Ignored {
        written_at: bool,
    },
}

struct Slot {
    /// The fixed bytes before it.
    before: Box<[u8]>,
    kind: Kind,
    part: Part,
}

/// A field that is an object or an array: what stands between the slots in its JSON.
pub(super) struct Nested {
    /// Its number among those of the facts.
    pub field: usize,
    /// Its first slot; the others follow.
    pub first: usize,
    /// One more than it has slots.
    pub fixed: Vec<Box<[u8]>>,
}

/// What entries that look alike have in common.
pub(super) struct Shape {
    slots: Vec<Slot>,
    nested: Vec<Nested>,
    /// The fixed bytes after the last slot.
    after: Box<[u8]>,
    key: usize,
    expires_at: Option<usize>,
    /// The texts of the value, where masks may stand, as they were learnt, which is unmasked.
    texts: Vec<(usize, Box<[u8]>)>,
    /// The facts of the entry it was learnt from, without its secret.
    facts: Facts<'static>,
    /// Tells it from other shapes.
    signature: [u8; 16],
    /// When an entry fitted last, as a count of changes from one shape to another; 0: never.
    used: u64,
}

impl Shape {
    /// Learns the shape of an entry whose facts could be read. `None` when it has none: its key or
    /// token is not plain, something is masked, or it has parts that are too unusual to expect again.
    fn learn(line: &[u8], scanned: &Scanned, facts: &Facts<'_>, rules: &Rules) -> Option<Self> {
        let masked = matches!(facts.secret, SecretFact::Masked) || !facts.masked.is_empty();
        if masked || scanned.base64 || !scanned.others.is_empty() {
            return None;
        }
        let (found, nested) = find_slots(line, facts, rules)?;
        if found.len() > SLOTS_MAX {
            return None;
        }
        let (mut slots, mut texts, mut at) = (Vec::with_capacity(found.len()), Vec::new(), 0);
        for Found { start, end, kind, part } in found {
            let may_be_masked = match part {
                Part::Token | Part::TokenType | Part::Scope => true,
                Part::Field(field) => kind == Kind::Text && facts.fields[field].place == Place::Value,
                Part::Within => kind == Kind::Text,
                Part::Key | Part::ExpiresAt | Part::Expiration | Part::Ignored { .. } => false,
            };
            if may_be_masked {
                texts.push((slots.len(), line.get(start..end)?.into()));
            }
            slots.push(Slot { before: line.get(at..start)?.into(), kind, part });
            at = end;
        }
        let place = |wanted: Part| slots.iter().position(|slot| slot.part == wanted);
        place(Part::Token)?;
        let (key, expires_at) = (place(Part::Key)?, place(Part::ExpiresAt));
        let after: Box<[u8]> = line.get(at..)?.into();
        let signature = signature(&slots, &after);
        let facts = without_secret(facts);
        Some(Self { key, expires_at, texts, after, facts, slots, nested, signature, used: 0 })
    }

    /// Whether an entry has this shape and a token in clear; tells where its contents stand.
    fn fits(&self, line: &[u8], contents: &mut Contents) -> bool {
        contents.clear();
        let mut at = 0;
        for slot in &self.slots {
            if !begins(&line[at..], &slot.before) {
                return false;
            }
            let start = at + slot.before.len();
            at = match slot.kind {
                Kind::Text => plain_end(line, start),
                Kind::Number => match number_end(line, start) {
                    Some(end) => end,
                    None => return false,
                },
            };
            contents.push((start as u32, at as u32));
        }
        if line.len() - at != self.after.len() || !begins(&line[at..], &self.after) {
            return false;
        }
        let of = |n: usize| content(line, contents, n);
        let key = of(self.key);
        // A time as text is at its full length between its quotes, escaped or not.
        let in_time = self.expires_at.is_none_or(|n| match self.slots[n].kind {
            Kind::Text => super::facts::time(of(n)).is_some(),
            Kind::Number => moment(of(n)).is_some(),
        });
        // Scopes and types repeat, so most texts are those that were learnt.
        let masked = || self.texts.iter().any(|(n, learnt)| of(*n) != learnt.as_ref() && is_masked(of(*n)));
        !key.is_empty() && key.len() <= KEY_BYTES_MAX && in_time && !masked()
    }

    fn facts<'a>(&'a self, line: &'a [u8], contents: &Contents, rules: &Rules) -> Facts<'a> {
        let mut facts = Facts {
            secret: SecretFact::Absent,
            fields: self.facts.fields.iter().map(Field::borrowed).collect(),
            expires_at: self.facts.expires_at,
            token_type: self.facts.token_type.as_deref().map(Cow::Borrowed),
            scope: self.facts.scope.as_deref().map(Cow::Borrowed),
            expiration: self.facts.expiration,
            written_at: None,
            ours: false,
            masked: Vec::new(),
        };
        for (n, slot) in self.slots.iter().enumerate() {
            let text = content(line, contents, n);
            match slot.part {
                Part::Key => {}
                Part::Token => facts.secret = SecretFact::Token(Hidden::Clear(Cow::Borrowed(text))),
                Part::ExpiresAt if slot.kind == Kind::Text => facts.expires_at = super::facts::time(text),
                Part::ExpiresAt => facts.expires_at = moment(text),
                Part::TokenType => facts.token_type = Some(Cow::Borrowed(text)),
                Part::Scope => facts.scope = Some(Cow::Borrowed(text)),
                Part::Expiration => facts.expiration = seconds(text),
                Part::Within | Part::Ignored { written_at: false } => {}
                Part::Ignored { written_at: true } => {
                    let at = if slot.kind == Kind::Text { super::facts::time(text) } else { moment(text) };
                    facts.written_at = facts.written_at.max(at);
                }
                Part::Field(field) => {
                    let field = &mut facts.fields[field];
                    field.content = Hidden::Clear(match (slot.kind, field.place) {
                        (Kind::Number, _) => Cow::Borrowed(text),
                        // In the value the quotes are escaped, so they are put around anew.
                        (Kind::Text, Place::Value) => Cow::Owned([b"\"", text, b"\""].concat()),
                        (Kind::Text, _) => {
                            let (start, end) = contents[n];
                            Cow::Borrowed(&line[start as usize - 1..end as usize + 1])
                        }
                    });
                }
            }
        }
        for Nested { field, first, fixed } in &self.nested {
            let mut json = fixed[0].to_vec();
            for (n, fixed) in fixed[1..].iter().enumerate() {
                json.extend_from_slice(content(line, contents, first + n));
                json.extend_from_slice(fixed);
            }
            facts.fields[*field].content = Hidden::Clear(Cow::Owned(json));
        }
        if rules.expect_ours {
            facts.ours = self.is_ours(line, contents, &facts);
        }
        facts
    }

    /// Whether the metadata has the form that only our writers give it. The source is one of the
    /// fields that are not compared by default, so it is looked up among the slots.
    fn is_ours(&self, line: &[u8], contents: &Contents, facts: &Facts<'_>) -> bool {
        let whole = |name: &str| match facts.find(Place::Metadata, name).map(|field| &field.content) {
            Some(Hidden::Clear(value)) => seconds(value).is_some_and(|n| n >= 0),
            _ => false,
        };
        let fp = match facts.find(Place::Metadata, "fp").map(|field| &field.content) {
            Some(Hidden::Clear(value)) => print(value).is_some(),
            _ => false,
        };
        let writer = self.slots.iter().enumerate().any(|(n, slot)| {
            slot.part != Part::Within
                && slot.before.ends_with(b"\"src\":\"")
                && matches!(content(line, contents, n), b"nango" | b"composio" | b"do-alarm")
        });
        self.facts.ours && whole("v") && whole("ep") && fp && writer
    }
}

/// `starts_with` for the few bytes between two slots, of which every entry has a dozen: calling the
/// library's comparison costs more than the comparison.
#[inline]
fn begins(line: &[u8], fixed: &[u8]) -> bool {
    let Some(line) = line.get(..fixed.len()) else { return false };
    let differ = |a: &[u8; 8], b: &[u8; 8]| u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
    let (words, rest) = line.as_chunks::<8>();
    let (fixed_words, fixed_rest) = fixed.as_chunks::<8>();
    let words = words.iter().zip(fixed_words).fold(0, |all, (a, b)| all | differ(a, b));
    // The end once more, as a whole word; only what is shorter than one goes byte by byte.
    let rest = match (line.last_chunk::<8>(), fixed.last_chunk::<8>()) {
        (Some(a), Some(b)) => differ(a, b),
        _ => rest.iter().zip(fixed_rest).fold(0, |all, (a, b)| all | u64::from(a ^ b)),
    };
    words | rest == 0
}

/// Digest of all that entries of a shape have in common.
fn signature(slots: &[Slot], after: &[u8]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for fixed in slots.iter().map(|slot| &*slot.before).chain([after]) {
        hasher.update((fixed.len() as u64).to_le_bytes());
        hasher.update(fixed);
    }
    for slot in slots {
        hasher.update(format!("{:?} {:?};", slot.kind, slot.part));
    }
    let mut signature = [0; 16];
    signature.copy_from_slice(&hasher.finalize()[..16]);
    signature
}

fn content<'a>(line: &'a [u8], contents: &Contents, n: usize) -> &'a [u8] {
    let (start, end) = contents[n];
    &line[start as usize..end as usize]
}

/// The end of a plain whole number, without leading zeros and small enough for any use.
pub(super) fn number_end(line: &[u8], start: usize) -> Option<usize> {
    let digits = start + usize::from(line.get(start) == Some(&b'-'));
    let length = digits_end(&line[..line.len().min(digits + 19)], digits) - digits;
    let sound = match length {
        0 | 19 => false,
        1 => true,
        _ => line[digits] != b'0',
    };
    sound.then_some(digits + length)
}

fn without_secret(facts: &Facts<'_>) -> Facts<'static> {
    Facts {
        secret: SecretFact::Absent,
        expires_at: facts.expires_at,
        token_type: facts.token_type.as_deref().map(|t| Cow::Owned(t.to_vec())),
        scope: facts.scope.as_deref().map(|t| Cow::Owned(t.to_vec())),
        expiration: facts.expiration,
        written_at: None,
        ours: facts.ours,
        fields: facts.fields.iter().map(Field::owned).collect(),
        masked: Vec::new(),
    }
}

/// The shapes seen so far.
#[derive(Default)]
pub(super) struct Shapes {
    shapes: Vec<Shape>,
    /// The one that fitted last.
    last: usize,
    /// How often another one fitted than before.
    changes: u64,
    /// Entries that are let pass before another shape is learnt, and how many that was the last time.
    wait: u32,
    pause: u32,
}

/// An entry that fits a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit(usize);

impl Shapes {
    /// Finds the shape of an entry and where its contents stand.
    pub fn fit(&mut self, line: &[u8], contents: &mut Contents) -> Option<Fit> {
        if self.shapes.get(self.last)?.fits(line, contents) {
            return Some(Fit(self.last));
        }
        let at = (0..self.shapes.len()).filter(|n| *n != self.last).find(|n| self.shapes[*n].fits(line, contents))?;
        self.changes += 1;
        self.shapes[self.last].used = self.changes;
        self.shapes[at].used = self.changes;
        self.last = at;
        Some(Fit(at))
    }

    /// Whether the shape of an entry that fits none should be learnt: not that of a masked one, which
    /// would never fit, and only now and then while what was learnt is no use.
    pub fn wants(&mut self, facts: &Facts<'_>) -> bool {
        if !matches!(facts.secret, SecretFact::Token(_)) || !facts.masked.is_empty() {
            return false;
        }
        let wants = self.wait == 0;
        self.wait = self.wait.saturating_sub(1);
        wants
    }

    /// Learns the shape of an entry that fitted none, in the place of the one that was used the
    /// longest ago.
    pub fn learn(&mut self, line: &[u8], scanned: &Scanned, facts: &Facts<'_>, rules: &Rules) {
        let learnt = Shape::learn(line, scanned, facts, rules)
            .filter(|shape| self.shapes.iter().all(|known| known.signature != shape.signature));
        let useful = match learnt {
            None => false,
            Some(shape) if self.shapes.len() < SHAPES_MAX => {
                self.shapes.push(shape);
                true
            }
            Some(shape) => {
                let others = (0..SHAPES_MAX).filter(|n| *n != self.last);
                let oldest = others.min_by_key(|n| self.shapes[*n].used).unwrap_or_default();
                std::mem::replace(&mut self.shapes[oldest], shape).used > 0
            }
        };
        self.pause = if useful { 0 } else { (self.pause * 2 + 1).min(WAIT_MAX) };
        self.wait = self.pause;
    }

    pub fn key<'a>(&self, fit: Fit, line: &'a [u8], contents: &Contents) -> &'a [u8] {
        content(line, contents, self.shapes[fit.0].key)
    }

    pub fn facts<'a>(&'a self, fit: Fit, line: &'a [u8], contents: &Contents, rules: &Rules) -> Facts<'a> {
        self.shapes[fit.0].facts(line, contents, rules)
    }

    /// Tells the shape from others, on either side.
    pub fn signature(&self, fit: Fit) -> &[u8; 16] {
        &self.shapes[fit.0].signature
    }

    /// The contents that are compared, key included.
    pub fn compared<'a>(&'a self, fit: Fit, line: &'a [u8], contents: &'a Contents) -> impl Iterator<Item = &'a [u8]> {
        let slots = self.shapes[fit.0].slots.iter().enumerate();
        slots.filter(|(_, slot)| !matches!(slot.part, Part::Ignored { .. })).map(|(n, _)| content(line, contents, n))
    }

    /// Whether two entries of one shape are the same in everything that is compared, key included.
    /// When not, they may still mean the same.
    pub fn same(&self, fit: Fit, lines: [&[u8]; 2], contents: [&Contents; 2]) -> bool {
        self.shapes[fit.0].slots.iter().enumerate().all(|(n, slot)| {
            matches!(slot.part, Part::Ignored { .. })
                || content(lines[0], contents[0], n) == content(lines[1], contents[1], n)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::compare::{Keys, compare};
    use super::super::entry::scan;
    use super::*;

    const LINE: &str = r#"{"key":"tokens:a:b:c","value":"{\"access_token\":\"ya29.secret-1\",\"expires_at\":\"2026-10-02T10:45:00.000Z\",\"n\":7,\"x\":\"y\",\"nested\":{\"a\":[1], \"b\":[\"c\",{}]},\"scope\":\"a b\"}","metadata":{"v":3,"inner":{"src":"x","n":[true,2]},"fp":"0123456789abcdef01234567","ep":1,"src":"nango","written_at":1790000000},"expiration":1790000000}"#;

    fn learnt() -> Shapes {
        let rules = Rules::default();
        let scanned = scan(LINE.as_bytes()).unwrap();
        let mut scratch = Vec::new();
        let facts = Facts::read(LINE.as_bytes(), &scanned, &rules, &mut scratch).unwrap();
        let mut shapes = Shapes::default();
        shapes.learn(LINE.as_bytes(), &scanned, &facts, &rules);
        assert_eq!(shapes.shapes.len(), 1);
        shapes
    }

    fn fits(line: &str) -> bool {
        learnt().fit(line.as_bytes(), &mut Contents::new()).is_some()
    }

    #[test]
    fn other_contents_fit_and_another_structure_does_not() {
        assert!(fits(LINE));
        assert!(fits(
            &LINE
                .replace("tokens:a:b:c", "tokens:dddd:e:f")
                .replace("ya29.secret-1", "x")
                .replace("\"v\":3", "\"v\":12345")
                .replace("{\\\"a\\\":[1]", "{\\\"a\\\":[234]")
                .replace("\"src\":\"x\"", "\"src\":\"yz\"")
        ));
        for (from, to) in [
            ("ya29.secret-1", "REDACTED"),
            ("ya29.secret-1", "ya29..."),
            ("a b\\", "[hidden]\\"),
            ("y\\\",\\\"nested", "***\\\",\\\"nested"),
            ("ya29.secret-1", ""),
            ("ya29.secret-1", "a\\\\u0041"),
            ("ya29.secret-1", "é"),
            ("tokens:a:b:c", ""),
            ("10:45:00", "10:99:00"),
            ("\"v\":3", "\"v\":03"),
            ("\"v\":3", "\"v\":3.5"),
            ("\"v\":3", "\"v\":true"),
            ("{\\\"a\\\":[1]", "{\\\"a\\\":[1,2]"),
            ("[true,2]", "[false,2]"),
            ("\"src\":\"nango\"", "\"src\":\"na\\u006ego\""),
            ("}\",\"metadata\"", "\",\"metadata\""),
            ("1790000000}", "1790000000"),
        ] {
            let line = LINE.replace(from, to);
            assert_ne!(line, LINE, "{from}");
            assert!(!fits(&line), "{line}");
        }
    }

    /// How many entries go the long way.
    fn misses(lines: impl IntoIterator<Item = String>) -> usize {
        let (rules, mut shapes, mut contents) = (Rules::default(), Shapes::default(), Contents::new());
        let long_way = |line: &String| {
            if shapes.fit(line.as_bytes(), &mut contents).is_some() {
                return false;
            }
            let scanned = scan(line.as_bytes()).unwrap();
            let mut scratch = Vec::new();
            let facts = Facts::read(line.as_bytes(), &scanned, &rules, &mut scratch).unwrap();
            if shapes.wants(&facts) {
                shapes.learn(line.as_bytes(), &scanned, &facts, &rules);
            }
            true
        };
        lines.into_iter().filter(long_way).count()
    }

    #[test]
    fn few_entries_of_a_mixed_dump_go_the_long_way() {
        let of = |n: usize, field: &str| LINE.replace("\\\"n\\\":7", field).replace("secret-1", &format!("secret-{n}"));
        let config =
            |n: usize| of(n, &format!("\\\"config\\\":{{\\\"subdomain\\\":\\\"of-{n}\\\",\\\"ids\\\":[{n}]}}"));
        assert_eq!(misses((0..1_000).map(config)), 1);
        let sets = |n: usize| of(n, &format!("\\\"field{}\\\":7", n % 12));
        assert_eq!(misses((0..1_000).map(sets)), 12);
        let masked = |_| LINE.replace("secret-1", "...");
        assert_eq!(misses((0..8).map(masked).chain((0..1_000).map(sets))), 8 + 12);
        // Each a kind of its own, and then only one kind.
        let own = |n: usize| of(n, &format!("\\\"own{n}\\\":7"));
        let count = misses((0..200).map(own).chain((0..10_000).map(config)));
        assert!((201..1_000).contains(&count), "{count}");
    }

    #[test]
    fn ignored_contents_do_not_count() {
        let shapes = &mut learnt();
        let mut same = |right: &str| {
            let (mut a, mut b) = (Contents::new(), Contents::new());
            let fit = shapes.fit(LINE.as_bytes(), &mut a).unwrap();
            assert_eq!(shapes.fit(right.as_bytes(), &mut b), Some(fit));
            shapes.same(fit, [LINE.as_bytes(), right.as_bytes()], [&a, &b])
        };
        assert!(same(&LINE.replace("nango", "composio").replace("\"written_at\":1790000000", "\"written_at\":1")));
        assert!(!same(&LINE.replace("secret-1", "secret-2")));
        assert!(!same(&LINE.replace("\"ep\":1", "\"ep\":2")));
        assert!(!same(&LINE.replace("b:c", "b:d")));
    }

    proptest! {
        #[test]
        fn beginning_with_something_is_what_the_library_says(line in "[ab]{0,40}", fixed in "[ab]{0,20}", cut in 0usize..40) {
            let (line, fixed) = (line.as_bytes(), fixed.as_bytes());
            prop_assert_eq!(begins(line, fixed), line.starts_with(fixed));
            let fixed = &line[..cut.min(line.len())];
            prop_assert!(begins(line, fixed));
        }

        /// The short way and the long way read the same facts, and the short way accepts nothing
        /// that the long way refuses.
        #[test]
        fn an_entry_that_fits_is_sound_and_says_the_same(at in 0..LINE.len(), with in "[ -~]{0,3}|\\PC{0,2}|[\\x00-\\x20\"\\\\]{1,2}", cut in 0usize..3) {
            prop_assume!(LINE.is_char_boundary(at));
            let line = format!("{}{with}{}", &LINE[..at], &LINE[(at + cut).min(LINE.len())..]);
            let mut shapes = learnt();
            let mut contents = Contents::new();
            if let Some(fit) = shapes.fit(line.as_bytes(), &mut contents) {
                let rules = Rules { expect_ours: true, ..Rules::default() };
                let scanned = scan(line.as_bytes());
                prop_assert!(scanned.is_ok(), "{line}");
                let scanned = scanned.unwrap();
                let mut scratch = Vec::new();
                let long = Facts::read(line.as_bytes(), &scanned, &rules, &mut scratch);
                prop_assert!(long.is_ok(), "{line}");
                let long = long.unwrap();
                let short = shapes.facts(fit, line.as_bytes(), &contents, &rules);
                let key = scanned.key(line.as_bytes());
                prop_assert_eq!(key.as_ref(), shapes.key(fit, line.as_bytes(), &contents));
                let exact = Rules { expiry_tolerance_ms: 0, ..rules };
                let compared = compare(&long, &short, &exact, &Keys::new([0; 32], None));
                prop_assert!(compared.changes.is_empty() && compared.unverifiable.is_none(), "{line} {:?}", compared.changes);
                prop_assert_eq!((long.ours, long.written_at, long.fields.len()), (short.ours, short.written_at, short.fields.len()));
            }
        }
    }
}
