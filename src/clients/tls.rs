//! One TLS handshake with a server, and what its certificate says: the look before the first key is
//! sent there. The verdict on the chain is the platform's, as for every request of ours.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::domain::time::Timestamp;

/// For the connection and the handshake together.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a handshake showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsLook {
    /// Such as `TLS 1.3`.
    pub protocol: &'static str,
    /// When the server's certificate ends, where that can be read.
    pub not_after: Option<Timestamp>,
}

/// Why there is nothing to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsTrouble {
    /// Nobody answers; nothing is known of a certificate.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// It answers, and is not to be trusted.
    #[error("{reason}{}", not_after.map(|at| format!(" (it ends at {})", at.to_rfc3339())).unwrap_or_default())]
    Refused { reason: String, not_after: Option<Timestamp> },
}

/// Shakes hands with the server of an `https` address and ends the connection again.
///
/// # Errors
/// When nobody answers, or what answers cannot be trusted.
pub async fn look(url: &Url) -> Result<TlsLook, TlsTrouble> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let unreachable = |what: &dyn fmt::Display| TlsTrouble::Unreachable(what.to_string());
    let name = ServerName::try_from(host.to_owned()).map_err(|_| unreachable(&"the host is no name"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        Verifier::new(Arc::clone(&provider)).map_err(|_| unreachable(&"this machine has no CA certificates"))?;
    let witness = Arc::new(Witness { verifier, seen: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unreachable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let shaken = tokio::time::timeout(PATIENCE, async {
        let stream = TcpStream::connect((host, url.port_or_known_default().unwrap_or(443)))
            .await
            .map_err(|error| unreachable(&error.kind()))?;
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        shaken.map_err(|error| {
            let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
            match cause {
                Some(cause) => TlsTrouble::Refused { reason: in_words(cause), not_after: witness.not_after() },
                None => unreachable(&error.kind()),
            }
        })
    });
    let stream = shaken.await.map_err(|_| unreachable(&"it does not answer in time"))??;
    let protocol = match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
        _ => "TLS 1.2",
    };
    Ok(TlsLook { protocol, not_after: witness.not_after() })
}

fn in_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate is over".to_owned(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet".to_owned()
            }
            CertificateError::UnknownIssuer => "nobody that this machine trusts vouches for its certificate".to_owned(),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name".to_owned()
            }
            CertificateError::Revoked => "its certificate is revoked".to_owned(),
            other => format!("its certificate is not accepted: {other:?}"),
        },
        other => format!("the handshake failed: {other}"),
    }
}

/// Passes every question on to the platform's verifier, and remembers the certificate.
#[derive(Debug)]
struct Witness {
    verifier: Verifier,
    seen: Mutex<Option<Timestamp>>,
}

impl Witness {
    fn not_after(&self) -> Option<Timestamp> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = not_after(end_entity);
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When an X.509 certificate ends (RFC 5280 §4.1): certificate, its signed part, and in that, behind
/// version, serial number, algorithm and issuer, the validity.
fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (_, certificate, _) = element(der)?;
    let (_, mut signed, _) = element(certificate)?;
    if signed.first() == Some(&VERSION) {
        signed = element(signed)?.2;
    }
    for _ in ["serial number", "algorithm", "issuer"] {
        signed = element(signed)?.2;
    }
    let (tag, validity, _) = element(signed)?;
    let (_, _, rest) = element(validity)?;
    let (kind, text, _) = element(rest)?;
    (tag == SEQUENCE).then(|| time(kind, text))?
}

/// The first DER element of `bytes`: its tag, its content, and what is behind it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0_usize, |n, digit| n << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDhhmmssZ`, where years from 50 on are of the last century, or `YYYYMMDDhhmmssZ`.
fn time(kind: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match kind {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u32 = year.parse().ok()?;
            (if year < 50 { 2_000 + year } else { 1_900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2);
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    Timestamp::parse(&format!("{year:04}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DER of `tag` around `content`, of any length.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut out = vec![tag];
        match u8::try_from(length) {
            Ok(short @ 0..=0x7f) => out.push(short),
            _ => out.extend([0x82, (length >> 8) as u8, length as u8]),
        }
        out.extend(content);
        out
    }

    fn certificate(version: bool, validity: &[u8]) -> Vec<u8> {
        let mut signed = if version { der(VERSION, &der(2, &[2])) } else { Vec::new() };
        signed.extend(der(2, &[1; 9]));
        signed.extend(der(SEQUENCE, &[0; 3]));
        // Longer than one byte can tell.
        signed.extend(der(SEQUENCE, &[0; 300]));
        signed.extend(der(SEQUENCE, validity));
        der(SEQUENCE, &der(SEQUENCE, &signed))
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_forms_of_time() {
        let at = |text: &str| Some(Timestamp::parse(text).unwrap());
        let utc = |text: &str| [der(UTC_TIME, b"250101000000Z"), der(UTC_TIME, text.as_bytes())].concat();
        assert_eq!(not_after(&certificate(true, &utc("270102030405Z"))), at("2027-01-02T03:04:05Z"));
        assert_eq!(not_after(&certificate(false, &utc("991231235959Z"))), at("1999-12-31T23:59:59Z"));
        let long = [der(UTC_TIME, b"250101000000Z"), der(GENERALIZED_TIME, b"20510102030405Z")].concat();
        assert_eq!(not_after(&certificate(true, &long)), at("2051-01-02T03:04:05Z"));
    }

    #[test]
    fn bytes_that_are_no_certificate_tell_nothing() {
        let whole = certificate(true, &[der(UTC_TIME, b"250101000000Z"), der(UTC_TIME, b"270102030405Z")].concat());
        for end in 0..whole.len() {
            assert_eq!(not_after(&whole[..end]), None, "{end}");
        }
        for bad in [&b"\x30\x80"[..], b"\x30\x85\xff\xff\xff\xff\xff", b""] {
            assert_eq!(not_after(bad), None, "{bad:?}");
        }
        assert_eq!(time(UTC_TIME, b"271302030405Z"), None);
        assert_eq!(time(UTC_TIME, "27é0203040Z".as_bytes()), None);
    }
}
