//! Finds the slots of an entry whose shape is to be learnt.

use super::facts::Facts;
use super::json::{Cursor, Escapes, Parsed, Str, plain_end, unescape_into};
use super::rules::{Place, Rules};
use super::shape::{Kind, Nested, Part, number_end};

/// The longest entry that is learnt, in bytes: to learn takes many times its room.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The slots in their order, and the fields that have some inside. `None` when the entry has parts
/// that are too unusual to expect again.
pub(super) fn find_slots(line: &[u8], facts: &Facts<'_>, rules: &Rules) -> Option<(Vec<Found>, Vec<Nested>)> {
    if line.len() > LINE_BYTES_MAX {
        return None;
    }
    let mut learner = Learner { facts, rules, found: Vec::new(), nested: Vec::new() };
    learner.entry(line)?;
    let Learner { mut found, mut nested, .. } = learner;
    found.sort_unstable_by_key(|slot| slot.start);
    for nested in &mut nested {
        nested.first = found.partition_point(|slot| slot.start < nested.first);
    }
    Some((found, nested))
}

/// A slot, and where it stands in the line.
pub(super) struct Found {
    pub start: usize,
    pub end: usize,
    pub kind: Kind,
    pub part: Part,
}

struct Learner<'l> {
    facts: &'l Facts<'l>,
    rules: &'l Rules,
    found: Vec<Found>,
    /// Here `first` is where the first slot starts in the line.
    nested: Vec<Nested>,
}

impl Learner<'_> {
    fn entry(&mut self, line: &[u8]) -> Option<()> {
        let (mut value, mut metadata) = (None, None);
        let mut members: Vec<(Str, (usize, usize))> = Vec::new();
        walk(line, |name, span| members.push((name, span)))?;
        for (name, (start, end)) in members {
            match name.raw(line) {
                b"key" | b"name" => self.slot(line, start, end, Part::Key, |at| at),
                b"expiration" => self.slot(line, start, end, Part::Expiration, |at| at),
                b"value" if line[start] == b'"' => value = Some((start + 1, end - 1)),
                b"metadata" if line[start] == b'{' => metadata = Some((start, end)),
                _ => {}
            }
        }
        if let Some((start, end)) = metadata {
            self.object(&line[start..end], Place::Metadata, |at| start + at)?;
        }
        let (start, end) = value?;
        let raw = &line[start..end];
        // Where each byte of the value's text stands in the line: only a backslash more for each
        // simple escape before it.
        let (mut text, mut places) = (Vec::new(), Vec::new());
        unescape_into(raw, &mut text)?;
        let mut at = 0;
        while at < raw.len() {
            places.push(start + at);
            at += match (raw[at], raw.get(at + 1)) {
                (b'\\', Some(b'u')) => return None,
                (b'\\', _) => 2,
                _ => 1,
            };
        }
        places.push(end);
        if places.len() != text.len() + 1 {
            return None;
        }
        self.object(&text, Place::Value, |at| places[at])
    }

    /// The members of the value or the metadata. `place` tells where a byte stands in the line.
    fn object(&mut self, bytes: &[u8], place: Place, at: impl Fn(usize) -> usize) -> Option<()> {
        let mut members: Vec<(Str, (usize, usize))> = Vec::new();
        walk(bytes, |name, span| members.push((name, span)))?;
        for (name, (start, end)) in members {
            if name.escapes != Escapes::None {
                continue;
            }
            let raw = name.raw(bytes);
            let written_at = raw == b"written_at";
            let part = match (place, raw) {
                (Place::Value, b"access_token") => Part::Token,
                (Place::Value, b"expires_at") => Part::ExpiresAt,
                _ if self.rules.ignores(place, raw) => Part::Ignored { written_at },
                // It would be both compared and looked at for its time; the long way does that.
                _ if written_at => return None,
                (Place::Value, b"token_type") => Part::TokenType,
                (Place::Value, b"scope") => Part::Scope,
                _ => Part::Field(self.facts.fields.iter().position(|f| f.place == place && f.name.as_ref() == raw)?),
            };
            match (bytes[start], part) {
                (b'{' | b'[', Part::Field(field)) => self.nested(bytes, start, end, field, &at)?,
                (b'{' | b'[', Part::Ignored { .. }) => {
                    let part = Part::Ignored { written_at: false };
                    leaves(bytes, start, |start, end| self.slot(bytes, start, end, part, &at))?;
                }
                _ => self.slot(bytes, start, end, part, &at),
            }
        }
        Some(())
    }

    /// Makes slots of what is plain inside an object or an array.
    fn nested(
        &mut self,
        bytes: &[u8],
        start: usize,
        end: usize,
        field: usize,
        at: impl Fn(usize) -> usize,
    ) -> Option<()> {
        let (first, mut fixed, mut from) = (self.found.len(), Vec::new(), start);
        leaves(bytes, start, |leaf, leaf_end| {
            let before = self.found.len();
            self.slot(bytes, leaf, leaf_end, Part::Within, &at);
            if self.found.len() > before {
                let quote = usize::from(bytes[leaf] == b'"');
                fixed.push(bytes[from..leaf + quote].into());
                from = leaf_end - quote;
            }
        })?;
        if let Some(found) = self.found.get(first) {
            fixed.push(bytes[from..end].into());
            self.nested.push(Nested { field, first: found.start, fixed });
        }
        Some(())
    }

    /// Makes a slot of a plain text or number; everything else stays fixed.
    fn slot(&mut self, bytes: &[u8], start: usize, end: usize, part: Part, at: impl Fn(usize) -> usize) {
        if bytes[start] == b'"' {
            if plain_end(bytes, start + 1) == end - 1 {
                // The place of the closing quote's backslash, if it has one, is where the text ends.
                self.found.push(Found { start: at(start + 1), end: at(end - 1), kind: Kind::Text, part });
            }
        } else if !matches!(part, Part::Token | Part::TokenType | Part::Scope | Part::Key)
            && number_end(bytes, start) == Some(end)
        {
            self.found.push(Found { start: at(start), end: at(end - 1) + 1, kind: Kind::Number, part });
        }
    }
}

/// The places of all that is neither an object nor an array in the value that starts at `from`.
fn leaves(bytes: &[u8], from: usize, mut each: impl FnMut(usize, usize)) -> Option<()> {
    /// Recursion is bounded: the value was scanned before, and so nests only so deep.
    fn walk(cursor: &mut Cursor<'_>, each: &mut dyn FnMut(usize, usize)) -> Parsed<()> {
        cursor.blanks();
        match cursor.peek() {
            Some(b'{') => cursor.object(|cursor, _| walk(cursor, each)),
            Some(b'[') => {
                cursor.at += 1;
                loop {
                    cursor.blanks();
                    match cursor.peek() {
                        Some(b']') => break,
                        Some(b',') => cursor.at += 1,
                        _ => walk(cursor, each)?,
                    }
                }
                cursor.at += 1;
                Ok(())
            }
            _ => {
                let span = cursor.value()?;
                each(span.start as usize, span.end as usize);
                Ok(())
            }
        }
    }
    walk(&mut Cursor { bytes, at: from }, &mut each).ok()
}

/// The members of an object with the places of their values.
fn walk(bytes: &[u8], mut member: impl FnMut(Str, (usize, usize))) -> Option<()> {
    let step = |cursor: &mut Cursor<'_>, name: Str| -> Parsed<()> {
        let span = cursor.value()?;
        member(name, (span.start as usize, span.end as usize));
        Ok(())
    };
    Cursor::new(bytes).object(step).ok()
}
