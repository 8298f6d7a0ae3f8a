//! Key material for tokens, accepted only if suited to an algorithm (RFC 7518, 3).

use std::{fmt, io};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, DecodingKey};
use x509_parser::{
    certificate::X509Certificate,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
        OID_SIG_ED25519, Oid,
    },
    pem::Pem,
    prelude::FromDer,
    public_key::{PublicKey, RSAPublicKey},
    x509::SubjectPublicKeyInfo,
};

/// Minimum length of an RSA key in bits (RFC 7518, 3.3).
const RSA_BITS: usize = 2048;
/// Minimum length of a secret in bytes: that of the shortest hash (RFC 7518, 3.2).
const SECRET: usize = 32;
/// Algorithms of RSA keys: PKCS #1 and PSS.
const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Reason why a file is not a valid key for tokens.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("it cannot be read")]
    File(#[from] io::Error),
    #[error(
        "it is no public key in PEM: convert it with `openssl pkey -pubin -pubout` or `ssh-keygen -e -m PKCS8 -f`, or name a shared secret with --token-secret"
    )]
    NotPem,
    #[error("it holds {0} keys or certificates: leave one in it")]
    Several(usize),
    #[error(
        "it holds a private key, which signs: give the public one, `openssl pkey -pubout -in` makes it"
    )]
    Private,
    #[error("{0:?} is not a public key: give RSA, EC (P-256, P-384) or Ed25519 in PEM")]
    Label(String),
    #[error(
        "its public key is damaged, or of another kind than RSA, EC (P-256, P-384) and Ed25519"
    )]
    Kind,
    #[error("its RSA key has {0} bits: give one of at least 2048 (RFC 7518, 3.3)")]
    Short(usize),
    #[error("a secret has at least 32 bytes (RFC 7518, 3.2): `openssl rand -base64 48` makes one")]
    ShortSecret,
    #[error(
        "it is {0}, and what is public is no secret: give public keys in PEM with --token-key, and here what only you and the issuer know"
    )]
    Public(&'static str),
}

/// Key and its algorithms.
#[derive(Clone)]
pub struct Key {
    pub decoding: DecodingKey,
    pub algorithms: Vec<Algorithm>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

/// Parse a public key, or that of a certificate, in PEM.
pub fn public(bytes: &[u8]) -> Result<Key, KeyError> {
    let pems: Result<Vec<Pem>, _> = Pem::iter_from_buffer(bytes).collect();
    let pems = pems.map_err(|_| KeyError::NotPem)?;
    let [pem] = pems.as_slice() else {
        return Err(if pems.is_empty() { KeyError::NotPem } else { KeyError::Several(pems.len()) });
    };
    let der = pem.contents.as_slice();
    match pem.label.as_str() {
        "RSA PUBLIC KEY" => rsa(der),
        "PUBLIC KEY" => subject(&whole(SubjectPublicKeyInfo::from_der(der))?),
        "CERTIFICATE" => subject(whole(X509Certificate::from_der(der))?.public_key()),
        label if label.ends_with("PRIVATE KEY") => Err(KeyError::Private),
        label => Err(KeyError::Label(label.to_owned())),
    }
}

/// Create an HMAC secret: a file's bytes without the line break at their end.
pub fn shared(bytes: &[u8]) -> Result<Key, KeyError> {
    if let Some(what) = published(bytes) {
        return Err(KeyError::Public(what));
    }
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let secret = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if secret.trim_ascii().len() < SECRET {
        return Err(KeyError::ShortSecret);
    }
    // A key at least as long as the hash (RFC 7518, 3.2).
    let lengths = [(Algorithm::HS256, 32), (Algorithm::HS384, 48), (Algorithm::HS512, 64)];
    let algorithms = lengths.iter().filter(|(_, length)| secret.len() >= *length);
    let algorithms = algorithms.map(|(algorithm, _)| *algorithm).collect();
    Ok(Key { decoding: DecodingKey::from_secret(secret), algorithms })
}

/// Return the kind of asymmetric key that a supposed secret is, if any.
/// It is found in any encoding in which such keys are passed on.
fn published(bytes: &[u8]) -> Option<&'static str> {
    // UTF-16, as some editors save it, is ASCII with zeros in between.
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0).collect();
    let has = |words: &[u8]| text.windows(words.len()).any(|part| part == words);
    if has(b"-----BEGIN ") {
        Some("a key or a certificate in PEM")
    } else if has(b"---- BEGIN SSH2") || has_openssh(&text) {
        Some("a key of OpenSSH")
    } else if is_json(&text) {
        Some("JSON, as a JWK is")
    } else if is_der(bytes) {
        Some("a public key or a certificate in DER")
    } else if decoded(&text).iter().any(|bytes| is_der(bytes)) {
        Some("a public key or a certificate, of which PEM's first and last line are missing")
    } else {
        None
    }
}

/// Check for a key as in `id_ed25519.pub`, `authorized_keys` and `known_hosts`.
/// That is its kind, and in base64 the kind again and the key (RFC 4253, 6.6).
fn has_openssh(text: &[u8]) -> bool {
    let words: Vec<&[u8]> =
        text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    words.windows(2).any(|pair| {
        let kind = [&(pair[0].len() as u32).to_be_bytes(), pair[0]].concat();
        STANDARD.decode(pair[1]).is_ok_and(|key| key.starts_with(&kind))
    })
}

fn is_json(text: &[u8]) -> bool {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let value = serde_json::from_slice(text).unwrap_or(serde_json::Value::Null);
    value.is_object() || value.is_array()
}

fn is_der(bytes: &[u8]) -> bool {
    let is = |bytes| {
        whole(SubjectPublicKeyInfo::from_der(bytes)).is_ok()
            || whole(X509Certificate::from_der(bytes)).is_ok()
            || whole(RSAPublicKey::from_der(bytes)).is_ok()
    };
    // A line break at the end may be an editor's, or the last byte of a signature.
    is(bytes) || bytes.strip_suffix(b"\n").is_some_and(is)
}

/// Decode base64 or hexadecimal digits.
fn decoded(text: &[u8]) -> Vec<Vec<u8>> {
    let mut digits = text.to_vec();
    digits.retain(|byte| !byte.is_ascii_whitespace() && !matches!(byte, b':' | b'='));
    let hexadecimal = digits.chunks(2).map(|pair| {
        std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())
    });
    let base64 = [STANDARD_NO_PAD, URL_SAFE_NO_PAD].map(|base64| base64.decode(&digits).ok());
    base64.into_iter().chain([hexadecimal.collect()]).flatten().collect()
}

/// Return the parsed value, if nothing follows it.
fn whole<T, E>(parsed: Result<(&[u8], T), E>) -> Result<T, KeyError> {
    match parsed {
        Ok(([], value)) => Ok(value),
        _ => Err(KeyError::Kind),
    }
}

fn subject(info: &SubjectPublicKeyInfo<'_>) -> Result<Key, KeyError> {
    let bits = info.subject_public_key.data.as_ref();
    let is = |oid: &Oid<'_>| info.algorithm.algorithm == *oid;
    if is(&OID_PKCS1_RSAENCRYPTION) {
        return rsa(bits);
    }
    if is(&OID_SIG_ED25519) && bits.len() == 32 {
        let decoding = DecodingKey::from_ed_der(bits);
        return Ok(Key { decoding, algorithms: vec![Algorithm::EdDSA] });
    }
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let algorithm = match curve.filter(|_| is(&OID_KEY_TYPE_EC_PUBLIC_KEY)) {
        Some(curve) if curve == OID_EC_P256 && bits.len() == 65 => Algorithm::ES256,
        Some(curve) if curve == OID_NIST_EC_P384 && bits.len() == 97 => Algorithm::ES384,
        _ => return Err(KeyError::Kind),
    };
    Ok(Key { decoding: DecodingKey::from_ec_der(bits), algorithms: vec![algorithm] })
}

/// Parse an RSA key in PKCS #1.
fn rsa(der: &[u8]) -> Result<Key, KeyError> {
    let bits = PublicKey::RSA(whole(RSAPublicKey::from_der(der))?).key_size();
    if bits < RSA_BITS {
        return Err(KeyError::Short(bits));
    }
    Ok(Key { decoding: DecodingKey::from_rsa_der(der), algorithms: RSA.to_vec() })
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    #[test]
    fn keys_are_for_their_own_algorithms() {
        for (kind, algorithm) in [
            (&PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
            (&PKCS_ECDSA_P384_SHA384, Algorithm::ES384),
            (&PKCS_ED25519, Algorithm::EdDSA),
        ] {
            let pair = KeyPair::generate_for(kind).unwrap();
            // Words before the key, as openssl writes them.
            let text = format!("Public-Key: (256 bit)\n{}", pair.public_key_pem());
            assert_eq!(public(text.as_bytes()).unwrap().algorithms, [algorithm]);
            let private = public(pair.serialize_pem().as_bytes());
            assert!(matches!(private, Err(KeyError::Private)), "{private:?}");
            let certificate = rcgen::CertificateParams::new(vec!["issuer.test".into()]).unwrap();
            let certificate = certificate.self_signed(&pair).unwrap().pem();
            assert_eq!(public(certificate.as_bytes()).unwrap().algorithms, [algorithm]);
        }
        let lengths = |length| shared(&vec![b'x'; length]).map(|key| key.algorithms.len());
        assert_eq!([32, 48, 64].map(|length| lengths(length).unwrap()), [1, 2, 3]);
        assert!(matches!(lengths(31), Err(KeyError::ShortSecret)));
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGr7oLBpNbRj0mTFMAc+8rHCmbz7bVFDsxXJgxY0OnEY a@b\n";
        let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap().public_key_pem();
        // X25519, which agrees on keys and signs nothing (RFC 8410, 3).
        let mut x25519 = vec![0x30, 0x2A, 0x30, 5, 6, 3, 0x2B, 0x65, 0x6E, 3, 0x21, 0];
        x25519.extend([7; 32]);
        let short = [&[0x30, 0x0D, 2, 6, 0, 0xC0, 1, 2, 3, 5, 2, 3, 1, 0, 1][..]].concat();
        for text in [
            ssh.to_owned(),
            "a secret of at least thirty-two bytes".to_owned(),
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#
                .to_owned(),
            format!("{ed}{ed}"),
            ed.replace("-----END", ""),
            ed.replace("PUBLIC KEY", "NEW CERTIFICATE REQUEST"),
            pem("PUBLIC KEY", b"no DER at all"),
            pem("PUBLIC KEY", &x25519),
            pem("RSA PUBLIC KEY", &short),
        ] {
            assert!(public(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_public_is_no_secret() {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGr7oLBpNbRj0mTFMAc+8rHCmbz7bVFDsxXJgxY0OnEY a@b\n";
        let certificate = rcgen::CertificateParams::new(vec!["issuer.test".into()]).unwrap();
        let certificate = certificate.self_signed(&pair).unwrap();
        use rcgen::PublicKeyData;
        let der = pair.subject_public_key_info();
        let utf16 =
            pair.public_key_pem().encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        for bytes in [
            // As Keycloak shows a realm's key, and as a debugger prints one.
            STANDARD.encode(&der).as_bytes(),
            format!("{}\n", URL_SAFE_NO_PAD.encode(certificate.der())).as_bytes(),
            der.iter().map(|byte| format!("{byte:02X}:")).collect::<String>().as_bytes(),
            &[&der[..], b"\n"].concat(),
            format!("host.example,192.0.2.1 {ssh}").as_bytes(),
            format!("# of the issuer\nrestrict,pty {ssh}").as_bytes(),
            format!("\n[{}]", r#"{"kty":"OKP"}"#).as_bytes(),
            &utf16,
            ssh.as_bytes(),
            pair.public_key_pem().as_bytes(),
            format!("\u{feff}{}", pair.public_key_pem()).as_bytes(),
            br#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            certificate.der(),
            &der,
        ] {
            let refused = shared(bytes);
            assert!(matches!(refused, Err(KeyError::Public(_))), "{refused:?} {bytes:?}");
        }
        let ends_in_line_break = br"MIIBHzCB0qADAgECAhQ2J9eQIEOXwcAMfvOb3lH1azKQczAFBgMrZXAwITEfMB0GA1UEAwwWcmNnZW4gc2VsZiBzaWduZWQgY2VydDAgFw03NTAxMDEwMDAwMDBaGA80MDk2MDEwMTAwMDAwMFowITEfMB0GA1UEAwwWcmNnZW4gc2VsZiBzaWduZWQgY2VydDAqMAUGAytlcAMhAN0awjcYAwgqlzWXnPYytklmBYyV8ayQprI9rIolH-choxowGDAWBgNVHREEDzANggtpc3N1ZXIudGVzdDAFBgMrZXADQQD_GZdaHI-oTzDa_inN3t3RJSxhaWqUCLhonBlwRiXt04ZaJYS-CtbljMYpPX2v7C9BZZAUfcJj7md-NKFziC4K";
        assert!(matches!(shared(ends_in_line_break), Err(KeyError::Public(_))));
        for secret in [[b'a'; 64], [b':'; 64], [0; 64]] {
            assert!(shared(&secret).is_ok(), "{secret:?}");
        }
    }
}
