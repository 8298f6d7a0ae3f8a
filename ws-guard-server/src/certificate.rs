//! Names in client certificates.

use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// Maximum length of a name in bytes, also of a user or a region.
/// It is what OpenID Connect (Core, 2) allows for `sub`.
pub const LONGEST: usize = 255;
/// Placeholder for a certificate without a name.
pub const NAMELESS: &str = "nameless";

/// Return the name in a verified DER certificate.
/// That is the subject's common name, or else its first alternative name that is a host, a mail
/// address or a URI; `nameless` where it has none that fits into a line of the log.
pub fn name(der: &[u8]) -> Box<str> {
    let parsed = X509Certificate::from_der(der).ok();
    parsed.and_then(|(_, certificate)| named(&certificate)).unwrap_or(NAMELESS.into())
}

fn named(certificate: &X509Certificate<'_>) -> Option<Box<str>> {
    let common = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    let name = match common {
        Some(name) => name,
        None => certificate.extensions().iter().find_map(|extension| {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension()
            else {
                return None;
            };
            names.general_names.iter().find_map(|name| match name {
                GeneralName::DNSName(name)
                | GeneralName::RFC822Name(name)
                | GeneralName::URI(name) => Some(*name),
                _ => None,
            })
        })?,
    };
    let fits = (1..=LONGEST).contains(&name.len()) && !name.chars().any(char::is_control);
    fits.then(|| name.into())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn of(common: Option<&str>, alternative: &[&str]) -> Box<str> {
        let alternative: Vec<String> = alternative.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(alternative).unwrap();
        params.distinguished_name.remove(DnType::CommonName);
        if let Some(common) = common {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        let key = KeyPair::generate().unwrap();
        name(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn the_common_name_comes_first() {
        assert_eq!(&*of(Some("alice"), &["host.test"]), "alice");
        assert_eq!(&*of(None, &["host.test", "other.test"]), "host.test");
        assert_eq!(&*of(None, &[]), NAMELESS);
        assert_eq!(&*of(Some("a\nb"), &[]), NAMELESS);
        assert_eq!(&*of(Some(&"x".repeat(256)), &[]), NAMELESS);
        assert_eq!(&*name(b"no certificate"), NAMELESS);
    }
}
