//! Deterministic dumps: the same number of entries gives the same bytes everywhere.
//!
//! Of all keys 0.1 % differ, 0.05 % are only on the left and 0.05 % only on the right.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sorted,
    /// Each side in another random order.
    Shuffled,
    /// Sorted, and every entry differs in who wrote it and when.
    Noise,
    /// Sorted, and each provider gives other fields, some of them objects.
    Mixed,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sorted => "sorted",
            Self::Shuffled => "shuffled",
            Self::Noise => "noise",
            Self::Mixed => "mixed",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Sorted, Self::Shuffled, Self::Noise, Self::Mixed].into_iter().find(|kind| kind.name() == name)
    }
}

/// What was planted at a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    OnlyLeft,
    OnlyRight,
    /// One character of the token.
    Token,
    Expiry,
    Scope,
    Version,
}

pub fn plant(n: u64) -> Plant {
    match mix(n ^ 0x5EED) % 2_000 {
        0 => Plant::OnlyLeft,
        1 => Plant::OnlyRight,
        2 | 3 => [Plant::Token, Plant::Expiry, Plant::Scope, Plant::Version][mix(n) as usize % 4],
        _ => Plant::Nothing,
    }
}

/// SplitMix64: good bits from a counter.
pub fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

pub fn key(n: u64) -> String {
    let provider = ["google_ads", "hubspot", "slack", "meta_ads"][provider(n)];
    format!("tokens:tenant-{n:09}:{provider}:default")
}

fn provider(n: u64) -> usize {
    (mix(n) >> 32) as usize % 4
}

/// What only one provider gives, as members of the value.
fn extra(n: u64) -> String {
    match provider(n) {
        0 => String::new(),
        1 => format!(r#",\"connection_config\":{{\"subdomain\":\"of-{n}\",\"portal\":{n}}}"#),
        2 => format!(r#",\"team\":{{\"id\":\"T{n}\",\"enterprise\":null}},\"bot\":{}"#, n.is_multiple_of(2)),
        _ => format!(r#",\"accounts\":[{}]"#, vec![n.to_string(); n as usize % 3].join(",")),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";

/// Appends one entry of one side as a line.
pub fn line(n: u64, right: bool, kind: Kind, out: &mut Vec<u8>) {
    let planted = if right { plant(n) } else { Plant::Nothing };
    let mut token = *b"ya29.a0AfB_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for (at, place) in token.iter_mut().enumerate().skip(11) {
        *place = ALPHABET[(mix(n * 64 + at as u64) >> 20) as usize % 64];
    }
    if planted == Plant::Token {
        let at = 11 + (mix(n) >> 8) as usize % (token.len() - 11);
        token[at] = if token[at] == b'x' { b'y' } else { b'x' };
    }
    let expiry = 1_790_000_000 + n % 3_600 + if planted == Plant::Expiry { 60 } else { 0 };
    let (minute, second) = (expiry % 3_600 / 60, expiry % 60);
    let scope = if planted == Plant::Scope { "openid" } else { "openid https://www.googleapis.com/auth/adwords" };
    let version = 1 + mix(n) % 400 + u64::from(planted == Plant::Version);
    let fp = mix(n ^ 0xF1);
    let extra = if kind == Kind::Mixed { extra(n) } else { String::new() };
    let noise = kind == Kind::Noise;
    let writer = if right && noise { "composio" } else { "nango" };
    let written = if right && noise { 1_789_990_000 + n } else { 1_789_000_000 };
    write!(
        out,
        r#"{{"key":"{}","value":"{{\"access_token\":\"{}\",\"expires_at\":\"2026-09-21T14:{minute:02}:{second:02}.000Z\",\"token_type\":\"Bearer\",\"scope\":\"{scope}\"{extra}}}","metadata":{{"v":{version},"fp":"{fp:016x}{:08x}","ep":1,"src":"{writer}","exp":{expiry},"written_at":{written}}}}}"#,
        key(n),
        std::str::from_utf8(&token).expect("the alphabet is ASCII"),
        fp as u32,
    )
    .expect("writing to memory cannot fail");
    out.push(b'\n');
}

/// Writes `left.jsonl`, `right.jsonl` and the combined report that must come out, `expected.txt`.
pub fn generate(folder: &Path, entries: u64, kind: Kind) {
    std::fs::create_dir_all(folder).expect("the folder can be made");
    for (name, right) in [("left.jsonl", false), ("right.jsonl", true)] {
        let absent = if right { Plant::OnlyLeft } else { Plant::OnlyRight };
        write_file(&folder.join(name), |file| {
            let mut text = Vec::new();
            for n in order(entries, kind, right) {
                if plant(n) != absent {
                    text.clear();
                    line(n, right, kind, &mut text);
                    file.write_all(&text).expect("the disk has room");
                }
            }
        });
    }
    write_file(&folder.join("expected.txt"), |file| {
        for n in 0..entries {
            let mark = match plant(n) {
                Plant::Nothing => continue,
                Plant::OnlyLeft => '-',
                Plant::OnlyRight => '+',
                _ => '*',
            };
            writeln!(file, "{mark} {}", key(n)).expect("the disk has room");
        }
    });
}

/// The numbers of the entries in the order of a side.
fn order(entries: u64, kind: Kind, right: bool) -> Box<dyn Iterator<Item = u64>> {
    if kind != Kind::Shuffled {
        return Box::new(0..entries);
    }
    let mut all: Vec<u32> = (0..entries as u32).collect();
    for at in (1..all.len()).rev() {
        let other = mix(at as u64 * 2 + u64::from(right)) as usize % (at + 1);
        all.swap(at, other);
    }
    Box::new(all.into_iter().map(u64::from))
}

fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write)) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).expect("the file can be made"));
    write(&mut file);
    file.flush().expect("the disk has room");
}
