//! The names in a client's certificate: its common name, and the DNS and URI names of its alternatives. Reads what TLS has
//! verified already; decides nothing about who may do what.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Most names of one certificate that are looked at.
const NAMES_MAX: usize = 64;
/// Longest name that is looked at, in bytes: SPIFFE ids have up to 2048, DNS names 253.
const NAME_BYTES_MAX: usize = 2048;
/// DER of the object identifier 2.5.4.3, `commonName`.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// UTF8String, PrintableString, IA5String: the kinds of text whose bytes are UTF-8. Others are passed over.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];

/// The names of a certificate, the common name first; none for what is no certificate.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let others = parsed.valid_dns_names().chain(parsed.valid_uri_names());
    let all = common_name(parsed.subject()).into_iter().chain(others);
    let is_short = |name: &&str| !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    all.filter(is_short).take(NAMES_MAX).map(str::to_owned).collect()
}

/// The last common name of a subject: the most specific one, as RFC 6125 has it.
fn common_name(subject: &[u8]) -> Option<&str> {
    let mut rest = subject;
    let mut found = None;
    while let Some((SET, set, after)) = value(rest) {
        rest = after;
        let mut attributes = set;
        while let Some((SEQUENCE, attribute, after)) = value(attributes) {
            attributes = after;
            if let Some((OBJECT_ID, id, text)) = value(attribute)
                && id == COMMON_NAME
                && let Some((kind, text, _)) = value(text)
                && TEXTS.contains(&kind)
            {
                found = std::str::from_utf8(text).ok().filter(|text| !text.chars().any(char::is_control));
            }
        }
    }
    found
}

/// The first DER value: its tag, its content, and what follows. None if it is cut short or of a form that DER forbids.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(byte, rest)| (usize::from(*byte), rest))?,
        0x82 => rest.split_first_chunk::<2>().map(|(two, rest)| (usize::from(u16::from_be_bytes(*two)), rest))?,
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Bytes as a certificate and as a subject, for the fuzzer.
pub(crate) fn hostile(bytes: &[u8]) {
    let names = names(&CertificateDer::from(bytes));
    assert!(names.len() <= NAMES_MAX && names.iter().all(|name| name.len() <= NAME_BYTES_MAX));
    if let Some(name) = common_name(bytes) {
        assert!(!name.chars().any(char::is_control));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One relative name of a subject: SET { SEQUENCE { id, text } }.
    fn part(id: &[u8], kind: u8, text: &[u8]) -> Vec<u8> {
        let tagged = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
        tagged(SET, &tagged(SEQUENCE, &[tagged(OBJECT_ID, id), tagged(kind, text)].concat()))
    }

    #[test]
    fn the_most_specific_common_name_counts_and_other_attributes_do_not() {
        let organization = part(&[0x55, 0x04, 0x0a], 0x0c, b"admin");
        let subject =
            [organization, part(&COMMON_NAME, 0x13, b"outer"), part(&COMMON_NAME, 0x0c, "gpu-17 ü".as_bytes())]
                .concat();
        assert_eq!(common_name(&subject), Some("gpu-17 ü"));
        assert_eq!(common_name(&subject[..subject.len() - 1]), Some("outer"), "a torn value is no value");
        assert_eq!(common_name(&part(&[0x55, 0x04, 0x0a], 0x0c, b"admin")), None);
        assert_eq!(common_name(&part(&COMMON_NAME, 0x0c, b"a\0b")), None, "a NUL would end the name for others");
        assert_eq!(common_name(&part(&COMMON_NAME, 0x1e, b"\0a\0b")), None, "a BMPString is passed over");
        assert_eq!(common_name(b""), None);
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        assert!(names(&CertificateDer::from(&b"\x30\x03abc"[..])).is_empty());
    }
}
