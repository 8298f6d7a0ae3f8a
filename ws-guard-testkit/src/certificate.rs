//! Certificate for servers in tests.
use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Create a certificate without specific subject, and its key, as PEM in `dir`.
pub fn make(dir: &Path) -> Result<[String; 2]> {
    let path = |name: &str| dir.join(name).display().to_string();
    let [cert, key] = [path("cert.pem"), path("key.pem")];
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=ws-guard-test", "-keyout", &key, "-out", &cert])
        .stderr(Stdio::null())
        .status()
        .context("openssl makes the certificate")?;
    ensure!(made.success(), "openssl ended with {made}");
    Ok([cert, key])
}
