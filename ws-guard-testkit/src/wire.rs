//! Bytes of a TCP connection, plain or inside TLS.
//!
//! Both halves can be used from different threads: reading waits for the network without a lock.
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Number of encrypted bytes read at a time: less than TLS keeps unread.
const READ: usize = 8 * 1024;
/// Maximum number of plain bytes that one write encrypts.
const WRITE: usize = 16 * 1024;

/// Connection, plain or inside TLS.
pub struct Wire {
    tcp: TcpStream,
    tls: Option<Arc<Mutex<ClientConnection>>>,
    /// Maximum number of plain bytes of a record.
    record: usize,
}

impl Wire {
    pub fn plain(tcp: TcpStream) -> Wire {
        Wire { tcp, tls: None, record: WRITE }
    }

    /// Negotiate TLS with the peer.
    pub fn tls(mut tcp: TcpStream) -> Result<Wire> {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("choosing versions of TLS")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").context("naming the server")?;
        let mut tls = ClientConnection::new(Arc::new(config), name)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        Ok(Wire { tcp, tls: Some(Arc::new(Mutex::new(tls))), record: WRITE })
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Set the maximum number of bytes per record, from 1.
    pub fn set_record(&mut self, bytes: usize) {
        self.record = bytes.clamp(1, WRITE);
    }

    pub fn try_clone(&self) -> io::Result<Wire> {
        Ok(Wire { tcp: self.tcp.try_clone()?, tls: self.tls.clone(), record: self.record })
    }

    /// Check whether written bytes have not been handed to the socket.
    pub fn pending(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| lock(tls).wants_write())
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&self.tcp).read(buffer) };
        let mut bytes = [0; READ];
        loop {
            match lock(tls).reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            let n = (&self.tcp).read(&mut bytes)?;
            if n == 0 {
                return Ok(0);
            }
            let mut tls = lock(tls);
            let mut left = &bytes[..n];
            while !left.is_empty() {
                tls.read_tls(&mut left)?;
                tls.process_new_packets().map_err(io::Error::other)?;
            }
        }
    }
}

impl Write for Wire {
    /// Accept nothing while the socket has no room for earlier bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&self.tcp).write(bytes) };
        let mut tls = lock(tls);
        send(&mut tls, &self.tcp)?;
        let mut taken = 0;
        for record in bytes[..bytes.len().min(WRITE)].chunks(self.record) {
            taken += tls.writer().write(record)?;
        }
        match send(&mut tls, &self.tcp) {
            Err(error) if !no_room(&error) => Err(error),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |tls| send(&mut lock(tls), &self.tcp))
    }
}

fn send(tls: &mut ClientConnection, mut tcp: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut tcp)?;
    }
    Ok(())
}

/// Check whether the error means that the socket's buffer is full.
pub(crate) fn no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn lock(tls: &Mutex<ClientConnection>) -> MutexGuard<'_, ClientConnection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verifier that accepts every certificate: the run created it itself.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
