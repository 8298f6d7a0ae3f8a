//! Subprotocols: their choice, and their effects on messages.

use std::time::Duration;

use bytes::Bytes;
use snow::{Builder, TransportState};
use ws_guard::config::server::ServerSection;
use ws_guard_server::{
    Config,
    coding::noise::{self, PATTERN},
    negotiation::{Negotiation, Table},
    noise_key::NoiseKey,
};
use ws_guard_testkit::frame::{Frame, opcode};

use super::stage::{Client, PATIENCE, REQUEST, Stage, connect, wait_for};

const SEED: &str = include_str!("../../../docs/examples/rollout.toml");
const NOISE_KEY: [u8; 32] = [0x42; 32];
/// Alice's keys in RFC 7748, 6.1, the private one as openssl writes it.
const ALICE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq
-----END PRIVATE KEY-----
";
const ALICE_PUBLIC: [u8; 32] = [
    0x85, 0x20, 0xF0, 0x09, 0x89, 0x30, 0xA7, 0x54, 0x74, 0x8B, 0x7D, 0xDC, 0xB4, 0x3E, 0xF7, 0x5A,
    0x0D, 0xBF, 0x3A, 0x0D, 0x26, 0x38, 0x1A, 0xF4, 0xEB, 0xA4, 0xA9, 0x8E, 0xAA, 0x9B, 0x4E, 0x6A,
];

pub fn table(text: &str) -> Table {
    let mut problems = Vec::new();
    let section = ServerSection::parse("rollout.toml".as_ref(), text, &mut problems);
    assert_eq!(problems, []);
    section.protocols
}

/// Return a table in which every client gets `offer`.
fn rows(offer: &str, features: &str) -> String {
    format!("[[server.protocol]]\noffer = \"{offer}\"\nfeatures = [{features}]\n")
}

pub fn negotiate(config: &mut Config, text: &str) {
    let key = NoiseKey::from_private(NOISE_KEY);
    config.negotiation = Negotiation::new(table(text), key).unwrap().into();
    config.access.user = Some("query:user".parse().unwrap());
}

/// Connect a client that offers this, as this user.
fn offer(stage: &Stage, user: &str, offered: &str) -> Client {
    let fields = format!("Sec-WebSocket-Protocol: {offered}\r\n");
    let request = REQUEST.replace("GET / ", &format!("GET /?user={user} "));
    Client::ask(connect(stage.address), &format!("{request}{fields}"), &[])
}

fn field(client: &Client, name: &str) -> Option<String> {
    let lines = client.answer.lines().filter_map(|line| line.split_once(": "));
    let mut values = lines.filter(|(field, _)| field.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.to_owned())
}

fn answered(client: &Client) -> (Option<String>, Option<String>) {
    (field(client, "sec-websocket-protocol"), field(client, "x-ws-protocol-version"))
}

fn finish(client: &mut Client) {
    client.send(&[Frame::new(opcode::CLOSE, 1000u16.to_be_bytes())]);
    assert_eq!(client.close_code(), Some(1000));
    client.stream.shutdown(std::net::Shutdown::Both).unwrap();
}

/// Wait until this number of messages has come in;
/// they are counted once the server is otherwise idle.
fn messages(stage: &Stage, expected: f64) {
    let counted = || stage.metric("wsguard_server_messages_total{direction=\"in\"}");
    let all = wait_for(PATIENCE, || (counted() == expected).then_some(()));
    assert!(all.is_some(), "{} messages", counted());
}

#[test]
fn the_answer_the_log_and_the_metrics_say_which_it_is() {
    let stage = Stage::start(|config| negotiate(config, SEED));
    let both = |name: &str| (Some(name.to_owned()), Some(name.to_owned()));
    let none = (None, Some("none".to_owned()));
    for (user, offered, expected) in [
        ("1", "v2+compression", both("v2+compression")),
        ("101", "v4+streaming", both("v4+streaming")),
        ("102", "v4+streaming", none.clone()),
        ("102", "v4+streaming, v2+compression", both("v2+compression")),
        ("102", "v9", none.clone()),
    ] {
        let mut client = offer(&stage, user, offered);
        assert_eq!(answered(&client), expected, "{user} offers {offered}");
        let version = expected.1.unwrap();
        let live = format!("wsguard_server_protocol_connections{{protocol=\"{version}\"}}");
        for (event, count) in [("open", 1.0), ("close", 0.0)] {
            if event == "close" {
                finish(&mut client);
            }
            let line = stage.logged(event, client.local);
            assert_eq!(line["protocol_version"], *version, "{line}");
            assert_eq!(stage.metric(&live), count, "{event} of {version}");
        }
    }
    // The same users get the same each time, and both answers occur.
    let chosen = || {
        (0..60).map(|user| {
            let client = offer(&stage, &user.to_string(), "v2+compression, v3+encryption");
            field(&client, "sec-websocket-protocol").unwrap()
        })
    };
    let first: Vec<String> = chosen().collect();
    assert!(chosen().eq(first.iter().cloned()));
    assert!(first.iter().any(|name| name == "v3+encryption"), "{first:?}");
    assert!(first.iter().filter(|name| *name == "v2+compression").count() > 40, "{first:?}");
}

#[test]
fn without_a_table_nothing_is_said() {
    let stage = Stage::start(|_| {});
    let client = offer(&stage, "1", "v2+compression");
    assert_eq!(answered(&client), (None, None));
    assert_eq!(stage.logged("open", client.local)["protocol_version"], "none");
    assert_eq!(stage.metric("wsguard_server_protocol_opened_total{protocol=\"none\"}"), 1.0);
}

#[test]
fn errors_are_counted_by_protocol() {
    let stage = Stage::start(|config| negotiate(config, SEED));
    let mut good = offer(&stage, "1", "v2+compression");
    finish(&mut good);
    let mut bad = offer(&stage, "1", "v2+compression");
    bad.send(&[Frame::new(opcode::BINARY, b"no block".as_slice())]);
    assert_eq!(bad.close_code(), Some(1007));
    bad.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(stage.closed(&bad), ("protocol_error".into(), 1007));
    stage.logged("close", good.local);
    for (sample, expected) in [
        ("opened_total{protocol=\"v2+compression\"}", 2.0),
        ("failed_total{protocol=\"v2+compression\"}", 1.0),
        ("closed_total{cause=\"peer_closed\",protocol=\"v2+compression\"}", 1.0),
        ("closed_total{cause=\"protocol_error\",protocol=\"v2+compression\"}", 1.0),
    ] {
        assert_eq!(
            stage.metric(&format!("wsguard_server_protocol_{sample}")),
            expected,
            "{sample}"
        );
    }
    assert_eq!(stage.metric("wsguard_server_protocol_errors_total{kind=\"snappy\"}"), 1.0);
}

#[test]
fn compression_is_permessage_deflate_or_else_snappy() {
    let stage = Stage::start(|config| negotiate(config, SEED));
    let repeated = b"a message that repeats itself, ".repeat(40);
    let mut client = offer(&stage, "1", "v2+compression");
    assert_eq!(field(&client, "sec-websocket-extensions"), None);
    let block = snap::raw::Encoder::new().compress_vec(&repeated).unwrap();
    assert!(block.len() < repeated.len() / 5);
    client.send(&[Frame::new(opcode::BINARY, block.clone())]);
    let echo = client.message();
    assert!(echo.len() < repeated.len() / 5, "{} bytes", echo.len());
    assert_eq!(snap::raw::Decoder::new().decompress_vec(&echo).unwrap(), repeated);
    // Text passes unchanged.
    client.send(&[Frame::text("text")]);
    assert_eq!(client.message(), b"text");

    let fields = "Sec-WebSocket-Protocol: v2+compression\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
    let mut client = Client::request(connect(stage.address), fields, &[]);
    assert!(field(&client, "sec-websocket-extensions").is_some());
    client.send(&[Frame::new(opcode::BINARY, repeated.clone())]);
    assert_eq!(client.next().unwrap().rsv, 4);
}

#[test]
fn a_snappy_bomb_is_refused_for_what_it_would_become() {
    let stage = Stage::start(|config| {
        negotiate(config, SEED);
        config.limits.message = 1 << 20;
    });
    let bomb = snap::raw::Encoder::new().compress_vec(&vec![0; 2 << 20]).unwrap();
    let announced = vec![0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
    for bomb in [bomb, announced] {
        let mut client = offer(&stage, "1", "v2+compression");
        client.send(&[Frame::new(opcode::BINARY, bomb)]);
        assert_eq!(client.close_code(), Some(1009));
    }
}

/// The client's side of the encryption, by the library alone.
struct Sealed {
    client: Client,
    noise: TransportState,
}

impl Sealed {
    fn agree(client: Client, protocol: &str) -> Sealed {
        let key = NoiseKey::from_private(NOISE_KEY).unwrap();
        Sealed::agree_with(client, protocol, key.public())
    }

    /// Agree on keys.
    /// `expected` is the server's key, which a client has to know from elsewhere.
    fn agree_with(mut client: Client, protocol: &str, expected: &[u8; 32]) -> Sealed {
        let builder = Builder::new(PATTERN.parse().unwrap());
        let mut noise = builder.prologue(protocol.as_bytes()).unwrap().build_initiator().unwrap();
        let mut buffer = [0; 1024];
        let len = noise.write_message(&[], &mut buffer).unwrap();
        client.send(&[Frame::new(opcode::BINARY, buffer[..len].to_vec())]);
        let answer = client.message();
        assert_eq!(noise.read_message(&answer, &mut buffer), Ok(0));
        assert_eq!(noise.get_remote_static(), Some(&expected[..]));
        Sealed { client, noise: noise.into_transport_mode().unwrap() }
    }

    fn echo(&mut self, message: &[u8], kind: u8) -> (u8, Bytes) {
        let sealed = noise::write(&mut self.noise, message, kind).unwrap();
        self.client.send(&[Frame::new(opcode::BINARY, sealed)]);
        let sealed = self.client.message();
        assert!(message.len() < 8 || !sealed.windows(8).any(|part| part == &message[..8]));
        let (kind, bytes) = noise::read(&mut self.noise, &sealed).unwrap();
        (kind, bytes.into())
    }
}

#[test]
fn messages_are_encrypted_after_a_noise_handshake() {
    let rows = rows("v3+encryption", "\"encryption\"");
    let stage = Stage::start(|config| negotiate(config, &rows));
    let fields =
        "Sec-WebSocket-Protocol: v3+encryption\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
    let client = Client::request(connect(stage.address), fields, &[]);
    // Encrypted messages cannot be compressed.
    assert_eq!(field(&client, "sec-websocket-extensions"), None);
    let mut sealed = Sealed::agree(client, "v3+encryption");
    for size in [0, 1, 1000, 65_518, 65_519, 300_000] {
        let message: Vec<u8> = (0..size).map(|i| (i * 31 / 7) as u8).collect();
        assert_eq!(sealed.echo(&message, 0), (0, message.into()));
    }
    assert_eq!(sealed.echo("κόσμε".as_bytes(), noise::TEXT), (noise::TEXT, "κόσμε".into()));
    // Heartbeats are frames, and continue as before.
    sealed.client.send(&[Frame::ping("alive")]);
    assert_eq!(sealed.client.next().unwrap().payload, b"alive");
    messages(&stage, 7.0);
    finish(&mut sealed.client);
}

/// Memory of keys for an idle connection.
#[test]
fn an_encrypted_connection_is_small() {
    const CLIENTS: u64 = 300;
    let folder = tempfile::tempdir().unwrap();
    let (key, file) = (folder.path().join("noise.pem"), folder.path().join("rollout.toml"));
    std::fs::write(&key, ALICE).unwrap();
    std::fs::write(&file, rows("v3+encryption", "\"encryption\"")).unwrap();
    let [key, file] = [key, file].map(|path| path.display().to_string());
    let served = super::served::Served::start(&["--noise-key", &key, "--config", &file]);
    let agreed = || {
        let fields = "Sec-WebSocket-Protocol: v3+encryption\r\n";
        let client = Client::request(connect(served.address), fields, &[]);
        Sealed::agree_with(client, "v3+encryption", &ALICE_PUBLIC)
    };
    drop((0..20).map(|_| agreed()).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_millis(300));
    let before = served.anonymous();
    let clients: Vec<Sealed> = (0..CLIENTS).map(|_| agreed()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let each = served.anonymous().saturating_sub(before) / CLIENTS;
    println!("an encrypted connection: {each} bytes");
    assert!(each < 6 * 1024, "{each} bytes each");
    drop(clients);
}

#[test]
fn encryption_and_compression_together() {
    let rows = rows("v3+encryption", "\"encryption\", \"compression\"");
    let stage = Stage::start(|config| negotiate(config, &rows));
    let client = offer(&stage, "1", "v3+encryption");
    let mut sealed = Sealed::agree(client, "v3+encryption");
    let message = b"a message that repeats itself, ".repeat(100);
    let (kind, block) = sealed.echo(&message, 0);
    assert_eq!(kind, noise::SNAPPY);
    assert_eq!(snap::raw::Decoder::new().decompress_vec(&block).unwrap(), message);
    assert!(block.len() < message.len() / 5);
    let (kind, again) = sealed.echo(&block, noise::SNAPPY);
    assert_eq!((kind, &again), (noise::SNAPPY, &block));
}

#[test]
fn who_does_not_encrypt_as_agreed_is_cut_off() {
    let rows = rows("v3+encryption", "\"encryption\"");
    let stage = Stage::start(|config| negotiate(config, &rows));
    for frame in [Frame::text("in the clear"), Frame::new(opcode::BINARY, vec![1; 33])] {
        let mut client = offer(&stage, "1", "v3+encryption");
        client.send(&[frame]);
        assert_eq!(client.close_code(), Some(1002));
        client.stream.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(stage.closed(&client), ("protocol_error".into(), 1002));
    }
    let mut changed = Sealed::agree(offer(&stage, "1", "v3+encryption"), "v3+encryption");
    let mut sealed = noise::write(&mut changed.noise, b"hello", 0).unwrap();
    sealed[3] ^= 1;
    changed.client.send(&[Frame::new(opcode::BINARY, sealed)]);
    assert_eq!(changed.client.close_code(), Some(1002));
    changed.client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    stage.logged("close", changed.client.local);
    assert_eq!(stage.metric("wsguard_server_protocol_errors_total{kind=\"encryption\"}"), 3.0);
}

/// The handshake for keys has a separate time limit, whatever else a client sends.
#[test]
fn who_never_agrees_on_keys_is_closed() {
    let rows = rows("v3+encryption", "\"encryption\"");
    let stage = Stage::start(|config| {
        negotiate(config, &rows);
        config.handshake_timeout = Duration::from_millis(400);
    });
    let mut client = offer(&stage, "1", "v3+encryption");
    let kept = Sealed::agree(offer(&stage, "2", "v3+encryption"), "v3+encryption");
    client.send(&[Frame::ping("alive")]);
    assert_eq!(client.close_code(), Some(1008));
    client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(stage.closed(&client), ("slow_sender".into(), 1008));
    std::thread::sleep(Duration::from_millis(500));
    let mut kept = kept;
    assert_eq!(kept.echo(b"still here", 0).1, "still here");
}

#[test]
fn fragments_are_streamed_as_they_come() {
    let rows = rows("v4+streaming", "\"streaming\"");
    let stage = Stage::start(|config| negotiate(config, &rows));
    let mut client = offer(&stage, "1", "v4+streaming");
    let fragments =
        [(opcode::TEXT, "κ"), (opcode::CONTINUATION, ""), (opcode::CONTINUATION, "όσμε")];
    for (number, (opcode, text)) in fragments.into_iter().enumerate() {
        let mut frame = Frame::new(opcode, text.as_bytes());
        frame.fin = number == 2;
        client.send(std::slice::from_ref(&frame));
        // Before the next one is sent.
        let echo = client.next().unwrap();
        assert_eq!((echo.opcode, echo.fin, echo.payload), (opcode, frame.fin, frame.payload));
        // Control frames arrive between them.
        client.send(&[Frame::ping("between")]);
        assert_eq!(client.next().unwrap().opcode, opcode::PONG);
    }
    client.send(&[Frame::text("whole")]);
    assert_eq!(client.message(), b"whole");
    messages(&stage, 2.0);
    let mut wrong = Frame::new(opcode::TEXT, [0xCE]);
    wrong.fin = false;
    client.send(&[wrong, Frame::new(opcode::CONTINUATION, [0xCE])]);
    assert_eq!(client.close_code(), Some(1007), "text is checked across fragments");
}

/// Streaming excludes compression and encryption.
/// Fragments are forwarded as they arrive, and cannot be unpacked or decrypted one by one: a client
/// that offers all of it gets streaming and none of the rest, and compressed fragments are an
/// error.
#[test]
fn streaming_goes_without_compression_and_encryption() {
    let all = ["v4+streaming", "v2+compression", "v3+encryption"];
    let named = ["streaming", "compression", "encryption"].map(|feature| format!("{feature:?}"));
    let table: String = all.iter().zip(&named).map(|(offer, named)| rows(offer, named)).collect();
    let stage = Stage::start(|config| negotiate(config, &table));
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate";
    let mut client = offer(&stage, "1", &format!("{}\r\n{deflate}", all.join(", ")));
    assert_eq!(answered(&client).0.as_deref(), Some("v4+streaming"));
    assert_eq!(field(&client, "sec-websocket-extensions"), None);
    client.send(&[Frame::text("in the clear")]);
    assert_eq!(client.message(), b"in the clear");
    client.send(&[Frame { rsv: 4, ..Frame::text("as if compressed") }]);
    assert_eq!(client.close_code(), Some(1002));
    client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(stage.closed(&client).0, "protocol_error");
    // Without it, compression is agreed.
    let client = offer(&stage, "1", &format!("v2+compression\r\n{deflate}"));
    assert!(field(&client, "sec-websocket-extensions").is_some(), "{}", client.answer);
}

/// A message of 80 MB through a server that holds at most 1 MiB of one.
#[test]
fn a_streamed_message_may_be_of_any_size() {
    let rows = rows("v4+streaming", "\"streaming\"");
    let stage = Stage::start(|config| {
        negotiate(config, &rows);
        config.limits.message = 1 << 20;
    });
    let mut client = offer(&stage, "1", "v4+streaming");
    let mut frame = Frame::new(opcode::BINARY, vec![7; 1 << 20]);
    frame.fin = false;
    let mut most = 0.0f64;
    for number in 0..80 {
        frame.opcode = if number == 0 { opcode::BINARY } else { opcode::CONTINUATION };
        client.send(std::slice::from_ref(&frame));
        assert!(client.message() == frame.payload, "{number}");
        most = most.max(stage.metric("wsguard_server_buffered_bytes"));
    }
    assert!(most < f64::from(3 << 20), "{most} bytes");
    frame.payload.push(7);
    client.send(&[frame]);
    assert_eq!(client.close_code(), Some(1009), "a fragment has a limit");
}

#[test]
fn a_table_changes_for_new_connections_and_one_with_an_error_for_none() {
    let stage = Stage::start(|config| negotiate(config, &rows("a", "")));
    let negotiation = stage.config().negotiation.clone();
    let mut old = offer(&stage, "1", "a, b");
    assert_eq!(answered(&old).0.as_deref(), Some("a"));
    negotiation.set(table(&rows("b", ""))).unwrap();
    assert_eq!(answered(&offer(&stage, "1", "a, b")).0.as_deref(), Some("b"));
    old.send(&[Frame::text("goes on")]);
    assert_eq!(old.message(), b"goes on");
    let keyless = Negotiation::new(table(&rows("b", "")), None).unwrap();
    let error = keyless.set(table(&rows("c", "\"encryption\""))).unwrap_err().to_string();
    assert!(error.contains("c encrypts") && error.contains("--noise-key"), "{error}");
    assert_eq!(*keyless.table(), table(&rows("b", "")));
}

/// `serve` itself: a file that changes, SIGHUP, and a file with an error.
#[test]
fn serve_follows_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rollout.toml");
    std::fs::write(&file, rows("a", "")).unwrap();
    let served = super::served::Served::start(&["--config", file.to_str().unwrap()]);
    let fields = "Sec-WebSocket-Protocol: a, b\r\n";
    let gets = || answered(&Client::request(connect(served.address), fields, &[])).0;
    assert_eq!(gets().as_deref(), Some("a"));
    let says = |text: &str| {
        let found = || served.process.lines().iter().any(|line| line.contains(text)).then_some(());
        assert!(wait_for(PATIENCE, found).is_some(), "{:?}", served.process.lines());
    };
    std::fs::write(&file, "[[server.protocol]]\noffer = \"b\"\npercent = 101\n").unwrap();
    says("the old subprotocols and topics stay in force: ");
    says("rollout.toml:3: server.protocol: percent: 101 is not from 0 to 100");
    assert_eq!(gets().as_deref(), Some("a"));
    std::fs::write(&file, rows("b", "")).unwrap();
    says("took over 1 subprotocols");
    assert_eq!(gets().as_deref(), Some("b"));
    let times = || served.process.lines().iter().filter(|line| line.contains("took over")).count();
    let before = times();
    let pid = nix::unistd::Pid::from_raw(served.process.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    assert!(wait_for(PATIENCE, || (times() > before).then_some(())).is_some());
    assert_eq!(gets().as_deref(), Some("b"));
}
