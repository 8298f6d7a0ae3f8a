//! TLS, with a client of the same library that checks the certificate.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    sync::Arc,
    time::Duration,
};

use prometheus::Registry;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use ws_guard_server::{seen::Seen, tls::Tls};
use ws_guard_testkit::frame::{Decoder, Frame, encode, opcode};

use super::stage::{REQUEST, Stage, connect, connect_from};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Write a fresh certificate and key for `localhost`; return the certificate.
/// A client trusts it.
fn certify(folder: &std::path::Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(folder.join("certificate.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

fn load(folder: &std::path::Path) -> Arc<Tls> {
    let tls = Tls::load(&folder.join("certificate.pem"), &folder.join("key.pem"));
    Arc::new(tls.unwrap())
}

/// Upgrade over TLS, trusting one certificate.
fn upgrade(stage: &Stage, trusted: &CertificateDer<'static>) -> std::io::Result<Stream> {
    upgrade_over(connect(stage.address), trusted, "")
}

/// Open the client's side of TLS, trusting one certificate.
fn session(connection: TcpStream, trusted: &CertificateDer<'static>) -> Stream {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(session, connection)
}

/// Upgrade over an existing connection, with additional header fields.
fn upgrade_over(
    connection: TcpStream,
    trusted: &CertificateDer<'static>,
    fields: &str,
) -> std::io::Result<Stream> {
    let mut stream = session(connection, trusted);
    stream.write_all(format!("{REQUEST}{fields}\r\n").as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    Ok(stream)
}

fn echo(stream: &mut Stream, size: usize) {
    let payload: Vec<u8> = (0..size).map(|i| (i * 31 / 7) as u8).collect();
    stream.write_all(&encode(&[Frame::new(2, payload.clone())])).unwrap();
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 65_536]);
    loop {
        if let Some(frame) = decoder.next_frame() {
            if frame.opcode == opcode::PONG {
                continue;
            }
            assert!(frame.payload == payload, "{size} bytes");
            return;
        }
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0);
        decoder.push(&buffer[..n]);
    }
}

/// Return how the server ends a stream after `sent`:
/// its answer, and whether it was cut off (RFC 8446, 6.1).
fn ended(
    stage: &Stage,
    trusted: &CertificateDer<'static>,
    say: impl FnOnce(&mut Stream),
) -> (String, std::io::Result<usize>) {
    let mut stream = session(connect(stage.address), trusted);
    say(&mut stream);
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    (String::from_utf8_lossy(&answer).into_owned(), end)
}

#[test]
fn no_stream_ends_without_a_close_notify() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certify(folder.path());
    let stage = Stage::start(|config| {
        config.tls = Some(load(folder.path()));
        config.access.user = Some("query:user".parse().unwrap());
        config.access.user_required = true;
        config.handshake_timeout = Duration::from_millis(500);
    });
    let long = format!("X-Flood: {}\r\n", "1".repeat(40_000));
    for (request, expected) in [
        (format!("{REQUEST}\r\n"), "HTTP/1.1 401 "),
        (format!("{REQUEST}\r\n").replace("GET", "POST"), "HTTP/1.1 405 "),
        (format!("{REQUEST}{long}\r\n"), "HTTP/1.1 431 "),
        ("\x01\x02 no HTTP\r\n\r\n".into(), "HTTP/1.1 400 "),
        // It takes too long.
        ("GET /".into(), ""),
    ] {
        let say = |stream: &mut Stream| stream.write_all(request.as_bytes()).unwrap();
        let (answer, end) = ended(&stage, &trusted, say);
        assert!(answer.starts_with(expected), "{request:.20}: {answer}");
        assert!(end.is_ok(), "{request:.20}: {end:?}");
    }
    // A client that leaves without a close frame, and one that sends something other than a frame.
    let upgrade = format!("{REQUEST}\r\n").replace("GET / ", "GET /?user=a ");
    let leaving = |stream: &mut Stream| {
        stream.write_all(upgrade.as_bytes()).unwrap();
        stream.conn.send_close_notify();
    };
    let (answer, end) = ended(&stage, &trusted, leaving);
    assert!(answer.starts_with("HTTP/1.1 101 ") && end.is_ok(), "{answer}: {end:?}");
    let broken = |stream: &mut Stream| {
        stream.write_all(upgrade.as_bytes()).unwrap();
        stream.write_all(b"\xF7\x80").unwrap();
    };
    let (_, end) = ended(&stage, &trusted, broken);
    assert!(end.is_ok(), "{end:?}");
}

#[test]
fn messages_of_all_sizes_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certify(folder.path());
    let stage = Stage::start(|config| config.tls = Some(load(folder.path())));
    let mut stream = upgrade(&stage, &trusted).unwrap();
    for size in [0, 125, 8192, 20_000, 2_000_000] {
        echo(&mut stream, size);
    }
}

/// Pings that the kernel cannot see are noted for it.
/// They are noted once each, for the address that it knows.
#[test]
fn pings_inside_tls_are_noted_but_not_those_of_proxies() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certify(folder.path());
    let seen = Arc::new(Seen::new(&Registry::new()).unwrap());
    let started = |tls: bool| {
        let (seen, folder) = (seen.clone(), folder.path());
        Stage::start(move |config| {
            config.tls = tls.then(|| load(folder));
            config.seen = Some(seen);
            config.drain_timeout = Duration::from_millis(200);
            config.proxies.networks = vec!["127.0.0.2/32".parse().unwrap()];
        })
    };
    let pings = encode(&vec![Frame::ping("?"); 7]);
    let stage = started(true);
    let mut direct = upgrade(&stage, &trusted).unwrap();
    for _ in 0..2 {
        direct.write_all(&pings).unwrap();
        echo(&mut direct, 10);
    }
    // A proxy's health checks have no field.
    for fields in ["X-Forwarded-For: 192.0.2.7\r\n", ""] {
        let proxy = connect_from(Ipv4Addr::new(127, 0, 0, 2), stage.address, None);
        let mut proxied = upgrade_over(proxy, &trusted, fields).unwrap();
        proxied.write_all(&pings).unwrap();
        echo(&mut proxied, 10);
    }
    let plain = started(false);
    let mut client = super::stage::Client::connect(plain.address);
    client.write(&pings);
    client.send(&[Frame::text("after them")]);
    assert_eq!(client.message(), b"after them");
    for mut stage in [stage, plain] {
        stage.stop();
    }
    let noted = seen.take();
    assert_eq!(noted, [("127.0.0.1/32".parse().unwrap(), 14)].into());
}

#[test]
fn without_tls_no_connection_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path());
    let stage = Stage::start(|config| config.tls = Some(load(folder.path())));
    let stream = connect(stage.address);
    let local = stream.local_addr().unwrap();
    let answer = super::stage::refused(stream, format!("{REQUEST}\r\n").as_bytes());
    assert!(!answer.contains("HTTP"), "{answer}");
    assert_eq!(stage.logged("refused", local)["refused"], "tls");
}

#[test]
fn a_new_certificate_is_for_new_connections_and_a_broken_one_for_none() {
    let folder = tempfile::tempdir().unwrap();
    let old = certify(folder.path());
    let tls = load(folder.path());
    let stage = Stage::start(|config| config.tls = Some(tls.clone()));
    let mut open = upgrade(&stage, &old).unwrap();
    fs::write(folder.path().join("certificate.pem"), "no certificate").unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("certificate.pem"), "{error}");
    upgrade(&stage, &old).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let new = runtime.block_on(async {
        let follow = async { tokio::time::timeout(Duration::from_secs(10), tls.follow()).await };
        let renew = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let new = certify(folder.path());
            for _ in 0..40 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if upgrade(&stage, &new).is_ok() {
                    return new;
                }
            }
            panic!("the new certificate is not in use");
        };
        tokio::select! {
            _ = follow => panic!("it ended"),
            new = renew => new,
        }
    });
    assert!(upgrade(&stage, &old).is_err());
    echo(&mut open, 1000);
    echo(&mut upgrade(&stage, &new).unwrap(), 1000);
}
