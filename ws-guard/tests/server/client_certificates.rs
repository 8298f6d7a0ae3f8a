//! Clients that authenticate with a certificate.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use ws_guard_server::tls::{Clients, Tls};

use super::{
    rollout::negotiate,
    stage::{REQUEST, Stage, connect},
};

/// A certificate authority, with issuer and certificate.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

/// A client's certificate and its key.
type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    fn client(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (certificate.der().clone(), key)
    }
}

/// The server's certificate, and `authority` as the issuer of clients'.
struct Files {
    folder: tempfile::TempDir,
    trusted: CertificateDer<'static>,
}

impl Files {
    fn new(authority: &Authority) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        fs::write(folder.path().join("certificate.pem"), made.cert.pem()).unwrap();
        let files = Files { trusted: made.cert.der().clone(), folder };
        files.vouch(authority);
        files
    }

    fn vouch(&self, authority: &Authority) {
        fs::write(self.path("clients.pem"), authority.certificate.pem()).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn tls(&self, required: bool) -> Arc<Tls> {
        let clients = Clients { authorities: self.path("clients.pem"), required };
        let tls =
            Tls::with_clients(&self.path("certificate.pem"), &self.path("key.pem"), Some(clients));
        Arc::new(tls.unwrap())
    }

    /// Upgrade as `identity`, or anonymously; return client end and answer's head.
    fn upgrade(
        &self,
        stage: &Stage,
        identity: Option<Identity>,
        fields: &str,
    ) -> io::Result<(SocketAddr, String, StreamOwned<ClientConnection, TcpStream>)> {
        let mut roots = RootCertStore::empty();
        roots.add(self.trusted.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = connect(stage.address);
        let local = stream.local_addr().unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        stream.write_all(format!("{REQUEST}{fields}\r\n").as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok((local, String::from_utf8(head).unwrap(), stream))
    }
}

#[test]
fn a_certificate_names_the_user() {
    let authority = Authority::new();
    let files = Files::new(&authority);
    let stage = Stage::start(|config| {
        config.tls = Some(files.tls(true));
        config.access.user = Some("certificate".parse().unwrap());
        config.access.user_required = true;
    });
    let alice = authority.client("alice");
    let (local, head, _stream) = files.upgrade(&stage, Some(alice), "").unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let line = stage.logged("open", local);
    assert_eq!((&line["user_id"], &line["certificate"]), (&"alice".into(), &"alice".into()));
    assert!(files.upgrade(&stage, None, "").is_err(), "no certificate, no connection");
    let mallory = Authority::new().client("alice");
    assert!(files.upgrade(&stage, Some(mallory), "").is_err(), "another authority's");
    let counted =
        || (stage.metric("wsguard_server_refused_total{reason=\"tls\"}") == 2.0).then_some(());
    assert!(super::stage::wait_for(super::stage::PATIENCE, counted).is_some());
}

#[test]
fn a_protocol_can_want_one_where_it_is_optional() {
    let authority = Authority::new();
    let files = Files::new(&authority);
    let rows = "[[server.protocol]]\noffer = \"v3+encryption\"\n\
        features = [\"encryption\", \"client-certificate\"]\n";
    let stage = Stage::start(|config| {
        negotiate(config, rows);
        config.tls = Some(files.tls(false));
    });
    let offer = "Sec-WebSocket-Protocol: v3+encryption\r\n";
    let version = |identity| {
        let (_, head, _stream) = files.upgrade(&stage, identity, offer).unwrap();
        let head = head.to_lowercase();
        let line = head.lines().find_map(|line| line.strip_prefix("x-ws-protocol-version: "));
        line.unwrap().to_owned()
    };
    assert_eq!(version(Some(authority.client("alice"))), "v3+encryption");
    assert_eq!(version(None), "none");
    let mallory = Authority::new().client("alice");
    assert!(files.upgrade(&stage, Some(mallory), offer).is_err(), "shown, and not good");
}

#[test]
fn who_vouches_can_change() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::new(&old);
    let tls = files.tls(true);
    let stage = Stage::start(|config| config.tls = Some(tls.clone()));
    assert!(files.upgrade(&stage, Some(old.client("a")), "").is_ok());
    fs::write(files.path("clients.pem"), "nobody").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("clients.pem holds no certificate"), "{error}");
    assert!(files.upgrade(&stage, Some(old.client("a")), "").is_ok());
    files.vouch(&new);
    tls.reload().unwrap();
    assert!(files.upgrade(&stage, Some(new.client("b")), "").is_ok());
    assert!(files.upgrade(&stage, Some(old.client("a")), "").is_err());
    let missing = Clients { authorities: Path::new("/nowhere.pem").into(), required: true };
    let error =
        Tls::with_clients(&files.path("certificate.pem"), &files.path("key.pem"), Some(missing));
    assert!(error.unwrap_err().to_string().contains("/nowhere.pem"));
}
