//! Keyed draws: every random value of the world is a hash of the seed and of what it is for.
//!
//! There is no stream of random numbers, so the order in which independent requests arrive
//! cannot change anything: the same seed and the same question give the same answer.

use sha2::{Digest, Sha256};

/// 256 bits for the question `labels`, asked for the `n`th time.
pub fn bytes(seed: u64, labels: &[&str], n: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for label in labels {
        hash.update((label.len() as u64).to_le_bytes());
        hash.update(label.as_bytes());
    }
    hash.update(n.to_le_bytes());
    hash.finalize().into()
}

/// 64 bits for the question `labels`, asked for the `n`th time.
pub fn draw(seed: u64, labels: &[&str], n: u64) -> u64 {
    let b = bytes(seed, labels, n);
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

/// A number from `low` to `high`, both included. `low` when the range is empty.
pub fn between(seed: u64, labels: &[&str], n: u64, low: i64, high: i64) -> i64 {
    if high <= low {
        return low;
    }
    let width = high.abs_diff(low).saturating_add(1);
    low.saturating_add((draw(seed, labels, n) % width) as i64)
}

/// Whether an event of `per_mille` in 1,000 happens.
pub fn happens(seed: u64, labels: &[&str], n: u64, per_mille: u32) -> bool {
    draw(seed, labels, n) % 1_000 < u64::from(per_mille)
}

/// `len` characters of `a-z A-Z 0-9`.
pub fn text(seed: u64, labels: &[&str], n: u64, len: usize) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut out = String::with_capacity(len);
    let mut block = 0_u64;
    while out.len() < len {
        let bytes = bytes(seed, labels, n.wrapping_add(block << 48));
        out.extend(bytes.iter().take(len - out.len()).map(|b| char::from(ALPHABET[usize::from(*b) % 62])));
        block += 1;
    }
    out
}

/// `len` lower-case hex digits, at most 64.
pub fn hex(seed: u64, labels: &[&str], n: u64, len: usize) -> String {
    let mut out = crate::domain::secret::hex(&bytes(seed, labels, n));
    out.truncate(len);
    out
}

/// A version 4 UUID.
pub fn uuid(seed: u64, labels: &[&str], n: u64) -> String {
    let mut b = bytes(seed, labels, n);
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let h = crate::domain::secret::hex(&b[..16]);
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_question_has_the_same_answer_and_labels_do_not_run_together() {
        assert_eq!(draw(7, &["a", "b"], 1), draw(7, &["a", "b"], 1));
        assert_ne!(draw(7, &["a", "b"], 1), draw(7, &["ab", ""], 1));
        assert_ne!(draw(7, &["a", "b"], 1), draw(8, &["a", "b"], 1));
    }

    #[test]
    fn ranges_include_both_ends_and_nothing_else() {
        let all: std::collections::BTreeSet<i64> = (0..200).map(|n| between(1, &["r"], n, -1, 2)).collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [-1, 0, 1, 2]);
        assert_eq!(between(1, &["r"], 0, 5, 4), 5);
        assert_eq!(between(1, &["r"], 0, i64::MIN, i64::MIN), i64::MIN);
    }

    #[test]
    fn texts_have_the_length_asked_for() {
        assert_eq!(text(1, &["t"], 0, 100).len(), 100);
        assert_eq!(hex(1, &["t"], 0, 40).len(), 40);
        assert_eq!(uuid(1, &["t"], 0).len(), 36);
    }
}
