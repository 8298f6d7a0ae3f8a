//! TLS to a collector: trust and identity, by standard variables.
//! They are those of the OpenTelemetry Protocol Exporter specification, read once at the start.

use std::{env, path::PathBuf, sync::Arc};

use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, crypto::ring},
};

use crate::pem::{PemError, certificates, private_key};

/// Certificates to trust in PEM, instead of the system's.
const TRUSTED: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
/// This process's chain in PEM, where the collector requires one, and its key.
const CHAIN: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
const KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";

/// Reason why TLS to a collector is impossible.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{0}: {1}")]
    File(&'static str, PemError),
    #[error("{0}: {1}")]
    Unusable(&'static str, rustls::Error),
    #[error(
        "this system trusts no certificate: install its CA certificates, or name some in {TRUSTED}"
    )]
    NoRoots,
    #[error("{CHAIN} and {KEY} go together: set both, or neither")]
    Half,
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// Create the connector for connections to a collector.
///
/// # Errors
/// If a variable names an unusable file, or no certificate is trusted.
pub fn connector() -> Result<TlsConnector, TrustError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(file(TRUSTED))?);
    let config = match (file(CHAIN), file(KEY)) {
        (None, None) => builder.with_no_client_auth(),
        (Some(chain), Some(key)) => {
            let chain = certificates(&chain).map_err(|error| in_file(CHAIN, error))?;
            let private = private_key(&key).map_err(|error| in_file(KEY, error))?;
            let config = builder.with_client_auth_cert(chain, private);
            config.map_err(|error| TrustError::Unusable(CHAIN, error))?
        }
        _ => return Err(TrustError::Half),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn in_file(variable: &'static str, error: PemError) -> TrustError {
    TrustError::File(variable, error)
}

/// Return the file of a variable; an empty one is none, as in the specification.
fn file(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|name| !name.is_empty()).map(PathBuf::from)
}

fn roots(trusted: Option<PathBuf>) -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = trusted else {
        // Systems have certificates that no library can read any more.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() { Err(TrustError::NoRoots) } else { Ok(roots) };
    };
    for certificate in certificates(&path).map_err(|error| in_file(TRUSTED, error))? {
        roots.add(certificate).map_err(|error| TrustError::Unusable(TRUSTED, error))?;
    }
    Ok(roots)
}
