//! The gate's evidence as a file: what was judged, on what, sealed by a digest and chained to the
//! file before.
//!
//! A file is accepted only byte for byte as it was written. The digest alone proves little, since
//! whoever edits can compute it again: what counts is that the state knows it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::criteria::{Gap, Judged, SoakClock, Verdict, Waiver};
use super::secret::hex;
use super::time::Timestamp;

/// The only version that this program reads.
pub const EVIDENCE_VERSION: u32 = 1;

/// Gaps that are listed, the newest; the clock counts all.
const GAPS_MAX: usize = 50;

/// What the gate said, with everything that it said it on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceFile {
    pub evidence_version: u32,
    pub verdict: Verdict,
    pub exit_code: u8,
    pub reason: String,
    pub plan: String,
    /// Which state it was judged from.
    pub state: String,
    /// Digest of the policy that it was judged by.
    pub policy: String,
    /// The how manieth run of this state.
    pub sequence: i64,
    pub evaluated_at: Timestamp,
    /// How long a pass opens what it guards; `evaluated_at` where it opens nothing.
    pub open_until: Timestamp,
    pub window: Window,
    pub criteria: Vec<Judged>,
    /// Waivers in force, whether or not they were needed.
    pub waivers: Vec<Waiver>,
    /// Digest of the file before; `null` for the first.
    pub previous: Option<String>,
    /// SHA-256 over this document without this field.
    pub digest: String,
}

/// The time that was watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    pub from: Option<Timestamp>,
    pub until: Timestamp,
    pub soak: SoakClock,
    /// When the soak will be long enough if nothing happens any more.
    pub soak_done_at: Option<Timestamp>,
    /// Times without evidence, oldest first.
    pub gaps: Vec<Gap>,
    pub gaps_total: u64,
}

impl Window {
    /// Keeps the newest gaps and counts all.
    pub fn new(soak: SoakClock, soak_ms: i64, gaps: &[Gap], until: Timestamp) -> Self {
        Self {
            from: soak.first_refresh_at,
            until,
            soak_done_at: soak.done_at(soak_ms, until),
            soak,
            gaps: gaps[gaps.len().saturating_sub(GAPS_MAX)..].to_vec(),
            gaps_total: gaps.len() as u64,
        }
    }
}

/// Why a text is not an intact evidence file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceFileError {
    #[error("it is not JSON of this form: {0}")]
    Shape(String),
    #[error("its version is {found} and this program reads {EVIDENCE_VERSION}")]
    Version { found: u32 },
    #[error("its digest is `{stated}` and its content is `{actual}`: it was altered")]
    Digest { stated: String, actual: String },
    #[error("it is not written the way it was sealed, at byte {at}: it was altered")]
    Bytes { at: usize },
    #[error("its verdict and its exit code contradict each other: it was altered")]
    Contradiction,
}

impl EvidenceFile {
    /// Sets version, exit code and digest. Observed values keep four decimals, cut and not
    /// rounded: 0.99995 must not read as 1.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        for judged in &mut self.criteria {
            judged.observed = judged.observed.map(|n| (n * 10_000.0).trunc() / 10_000.0);
        }
        self.evidence_version = EVIDENCE_VERSION;
        self.exit_code = self.verdict.exit_code();
        self.digest = self.content_digest();
        self
    }

    fn content_digest(&self) -> String {
        let bare = Self { digest: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&bare).expect("an evidence file is plain data");
        format!("sha256:{}", hex(&Sha256::digest(&bytes)))
    }

    /// The one text form.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("an evidence file is plain data");
        text.push('\n');
        text
    }

    /// Reads a file back and checks that it is as it was sealed.
    ///
    /// # Errors
    /// When one byte is not what was written.
    pub fn from_json(text: &str) -> Result<Self, EvidenceFileError> {
        let file: Self = serde_json::from_str(text).map_err(|e| EvidenceFileError::Shape(e.to_string()))?;
        if file.evidence_version != EVIDENCE_VERSION {
            return Err(EvidenceFileError::Version { found: file.evidence_version });
        }
        let actual = file.content_digest();
        if file.digest != actual {
            return Err(EvidenceFileError::Digest { stated: file.digest, actual });
        }
        if file.exit_code != file.verdict.exit_code() {
            return Err(EvidenceFileError::Contradiction);
        }
        let written = file.to_json();
        if written != text {
            let same = written.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
            return Err(EvidenceFileError::Bytes { at: same });
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::criteria::{CriteriaPolicy, Evidence, judge};
    use proptest::prelude::*;

    fn file() -> EvidenceFile {
        let now = Timestamp::from_secs(1_778_000_000);
        let mut assessment = judge(&CriteriaPolicy::default(), &Evidence { now, ..Evidence::default() }, &[]);
        assessment.criteria[3].observed = Some(2.0 / 3.0);
        EvidenceFile {
            evidence_version: 0,
            verdict: Verdict::Inconclusive,
            exit_code: 0,
            reason: "not enough evidence".into(),
            plan: "p-0123456789ab".into(),
            state: "s-0123456789ab".into(),
            policy: "sha256:00".into(),
            sequence: 1,
            evaluated_at: now,
            open_until: now,
            window: Window::new(assessment.clock, 30 * crate::domain::time::DAY_MS, &[], now),
            criteria: assessment.criteria,
            waivers: vec![],
            previous: None,
            digest: String::new(),
        }
        .sealed()
    }

    #[test]
    fn a_file_reads_back_as_written() {
        let file = file();
        assert_eq!(EvidenceFile::from_json(&file.to_json()), Ok(file.clone()));
        assert_eq!(file.exit_code, 4);
        assert_eq!(file.criteria[3].observed, Some(0.6666));
    }

    #[test]
    fn a_digest_computed_again_over_an_edit_still_needs_the_form_in_which_it_was_written() {
        let text = file().to_json();
        let spaced = text.replacen("\"plan\": ", "\"plan\":  ", 1);
        assert!(matches!(EvidenceFile::from_json(&spaced), Err(EvidenceFileError::Bytes { .. })));
        let edited = text.replacen("p-0123456789ab", "p-0123456789ac", 1);
        assert!(matches!(EvidenceFile::from_json(&edited), Err(EvidenceFileError::Digest { .. })));
        let mut lying = file();
        lying.exit_code = 0;
        lying.digest = lying.content_digest();
        assert_eq!(EvidenceFile::from_json(&lying.to_json()), Err(EvidenceFileError::Contradiction));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever byte changes to whatever else, the file is refused.
        #[test]
        fn one_changed_byte_is_refused(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = file().to_json().into_bytes();
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert!(EvidenceFile::from_json(&text).is_err());
            }
        }
    }
}
