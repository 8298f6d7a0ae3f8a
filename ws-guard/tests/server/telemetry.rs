//! Traces and metrics, as an OTLP receiver gets them.

use std::{fs, io::Write, net::TcpListener, sync::Arc, thread, time::Duration};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use ws_guard_testkit::frame::{Frame, opcode};

use super::{
    collector::{Collector, text},
    served::Served,
    stage::{Client, PATIENCE, connect, free_port, refused, wait_for},
};

/// The fields that the seed names.
const FIELDS: [&str; 6] = [
    "connection_id",
    "user_id",
    "region",
    "handshake_duration_ms",
    "ping_interval_ms",
    "message_queue_size",
];

fn served(collector: &Collector) -> Served {
    served_with(collector, &[])
}

fn served_with(collector: &Collector, more: &[&str]) -> Served {
    let query = ["--user-from", "query:user", "--region-from", "query:region"];
    let quick = [("OTEL_METRIC_EXPORT_INTERVAL", "100"), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let export = ["--otlp-endpoint", collector.endpoint()];
    Served::with(&[&query[..], &export, more].concat(), &quick)
}

/// Connect a client that names its user.
fn known(served: &Served) -> Client {
    let mut stream = connect(served.address);
    let request = super::stage::REQUEST.replace("GET / ", "GET /?user=u-7&region=shanghai ");
    stream.write_all(format!("{request}\r\n").as_bytes()).unwrap();
    Client::upgraded(stream)
}

#[test]
fn a_connection_is_a_trace_with_the_seeds_fields() {
    let collector = Collector::start();
    let served = served(&collector);
    let mut client = known(&served);
    client.send(&[Frame::text("hello"), Frame::text("again")]);
    client.message();
    client.message();
    // An error: a reserved opcode.
    client.send(&[Frame::new(3, [])]);
    client.close_code();
    drop(client);
    let whole = wait_for(PATIENCE, || collector.spans("connection").pop()).expect("its span");
    assert_eq!(whole.kind(), SpanKind::Server);
    assert_eq!(text(&whole.attributes, "cause").as_deref(), Some("protocol_error"));
    assert!(whole.parent_span_id.is_empty());
    for name in ["onopen", "onmessage", "onerror", "onclose"] {
        let spans = collector.spans(name);
        assert_eq!(spans.len(), 1, "{name}");
        let span = &spans[0];
        assert_eq!((&span.trace_id, &span.parent_span_id), (&whole.trace_id, &whole.span_id));
        for field in FIELDS {
            assert!(text(&span.attributes, field).is_some(), "{name} lacks {field}");
        }
        assert_eq!(text(&span.attributes, "user_id").as_deref(), Some("u-7"));
        assert_eq!(text(&span.attributes, "region").as_deref(), Some("shanghai"));
        assert_eq!(text(&span.attributes, "ping_interval_ms").as_deref(), Some("25000"));
    }
    let open = &collector.spans("onopen")[0];
    let took = open.end_time_unix_nano - open.start_time_unix_nano;
    let said: f64 = text(&open.attributes, "handshake_duration_ms").unwrap().parse().unwrap();
    assert!((took as f64 / 1e6 - said).abs() < 0.01, "{took} ns, {said} ms");
    let error = &collector.spans("onerror")[0];
    assert!(error.status.as_ref().unwrap().message.contains("opcode"), "{error:?}");
    assert!(collector.received.lock().unwrap().resources.iter().all(|name| name == "ws-guard"));
}

/// From a sample of the metrics port to the trace of its connection.
#[test]
fn exemplars_lead_to_traces() {
    let collector = Collector::start();
    let port = free_port();
    let served = served_with(&collector, &["--metrics-listen", &format!("127.0.0.1:{port}")]);
    let _client = known(&served);
    let open = wait_for(PATIENCE, || collector.spans("onopen").pop()).expect("its span");
    let trace: String = open.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = text(&open.attributes, "connection_id").unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                   accept: application/openmetrics-text\r\n\r\n";
    let answer = refused(connect(([127, 0, 0, 1], port).into()), request.as_bytes());
    let behind: Vec<&str> = answer
        .lines()
        .filter(|line| line.starts_with("wsguard_server_handshake_seconds_bucket"))
        .filter_map(|line| line.split_once(" # ").map(|(_, exemplar)| exemplar))
        .collect();
    let wanted = format!("{{connection_id=\"{id}\",trace_id=\"{trace}\"}} ");
    assert!(behind.len() == 1 && behind[0].starts_with(&wanted), "{behind:?}, not {wanted}");
}

#[test]
fn metrics_are_those_of_the_metrics_port_without_identities() {
    let collector = Collector::start();
    let served = served(&collector);
    let mut client = known(&served);
    client.send(&[Frame::text("hello")]);
    client.message();
    let region = ("region", "shanghai");
    let connections = || {
        let labels = [("state", "open"), region];
        collector.metric("websocket_connections_total", &labels)
    };
    assert!(wait_for(PATIENCE, || (connections() == 1.0).then_some(())).is_some());
    let events = |event| {
        wait_for(PATIENCE, || {
            let count =
                collector.metric("wsguard_server_events_total", &[("event", event), region]);
            (count == 1.0).then_some(())
        })
    };
    assert!(events("open").is_some() && events("message").is_some());
    client.send(&[Frame::new(opcode::CLOSE, [0x03, 0xE8])]);
    client.close_code();
    assert!(events("close").is_some());
    assert_eq!(collector.metric("wsguard_server_events_total", &[("event", "error")]), 0.0);
    assert_eq!(collector.metric("wsguard_server_ping_interval_seconds", &[]), 25.0);
    let received = collector.received.lock().unwrap();
    let all = format!("{:?}", received.metrics);
    assert!(!all.contains("u-7") && !all.contains("127.0.0.1"), "{all}");
    let names: Vec<&str> = received.metrics.iter().map(|metric| metric.name.as_str()).collect();
    for name in ["wsguard_server_handshake_seconds", "wsguard_server_message_queue_bytes"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

/// Pending spans and numbers are exported before the process ends.
#[test]
fn what_waits_is_exported_at_the_end() {
    let collector = Collector::start();
    let mut served = Served::with(&["--otlp-endpoint", collector.endpoint()], &[]);
    let mut client = Client::connect(served.address);
    served.process.signal(Signal::SIGTERM).unwrap();
    assert_eq!(client.close_code(), Some(1012));
    drop(client);
    wait_for(PATIENCE, || served.process.ended().unwrap()).expect("it ends");
    let whole = collector.spans("connection");
    assert_eq!(text(&whole[0].attributes, "cause").as_deref(), Some("shutdown"));
    assert_eq!(collector.metric("wsguard_server_closed_total", &[("cause", "shutdown")]), 1.0);
}

/// The standard variables alone:
/// a signal's own endpoint unchanged, compression, and no endpoint where they are empty.
#[test]
fn the_environment_alone_says_where_to() {
    let collector = Collector::start();
    let own = format!("{}/own/traces?key=1", collector.endpoint());
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*own),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &format!("{}/v1/metrics", collector.endpoint())),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ];
    let served = Served::with(&[], &variables);
    assert_eq!(served.says("OTEL_TRACES_SAMPLER is not honoured"), 1);
    drop(Client::connect(served.address));
    wait_for(PATIENCE, || collector.spans("connection").pop()).expect("a span");
    let opened = || collector.metric("wsguard_server_opened_total", &[]);
    assert!(wait_for(PATIENCE, || (opened() == 1.0).then_some(())).is_some(), "{}", opened());
    let received = collector.received.lock().unwrap();
    assert!(received.packed);
    assert!(received.authorized.iter().any(|(to, _)| to == "/own/traces?key=1"));
}

#[test]
fn what_is_disabled_stays_so() {
    let collector = Collector::start();
    let variables = [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
    ];
    let served = Served::with(&[], &variables);
    assert_eq!(served.says("OTEL_SDK_DISABLED is set"), 1);
    thread::sleep(Duration::from_millis(300));
    assert!(collector.received.lock().unwrap().authorized.is_empty());
}

/// An absent collector costs connections nothing, and is reported once.
#[test]
fn without_a_collector_the_server_goes_on() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let quick = [("OTEL_METRIC_EXPORT_INTERVAL", "50"), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let served = Served::with(&["--otlp-endpoint", &format!("http://{nobody}")], &quick);
    served
        .process
        .wait_for(PATIENCE, |line| line.contains("cannot export telemetry").then_some(()))
        .unwrap();
    for _ in 0..20 {
        let mut client = Client::connect(served.address);
        client.send(&[Frame::text("hello")]);
        assert_eq!(client.message(), b"hello");
    }
    thread::sleep(Duration::from_millis(300));
    let lines = served.process.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("cannot export telemetry")).count(), 1);
}

/// Write certificates of a collector and of one client into a folder;
/// return the collector's configuration.
fn certify(folder: &std::path::Path) -> ServerConfig {
    for (name, subject) in [("collector", "localhost"), ("client", "ws-guard")] {
        let made = rcgen::generate_simple_self_signed(vec![subject.into()]).unwrap();
        fs::write(folder.join(format!("{name}.pem")), made.cert.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    }
    let certificate =
        |name: &str| PemObject::from_pem_file(folder.join(format!("{name}.pem"))).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate("client")).unwrap();
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let key = PrivateKeyDer::from_pem_file(folder.join("collector.key")).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![certificate("collector")], key)
        .unwrap()
}

/// Start a collector behind TLS, with certificates in a folder.
fn secure(folder: &std::path::Path) -> Collector {
    Collector::on(TcpListener::bind("127.0.0.1:0").unwrap(), Some(certify(folder)))
}

/// A collector behind TLS that requires a certificate and an authorization.
/// It gets both, with traces and with metrics.
#[test]
fn over_tls_with_a_certificate_and_an_authorization() {
    let folder = tempfile::tempdir().unwrap();
    let collector = secure(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", &file("collector.pem")),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &file("client.pem")),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &file("client.key")),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20let-me-in"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let served = Served::with(&[], &variables);
    drop(Client::connect(served.address));
    wait_for(PATIENCE, || collector.spans("connection").pop()).expect("a span");
    let opened = || collector.metric("wsguard_server_opened_total", &[]);
    assert!(wait_for(PATIENCE, || (opened() == 1.0).then_some(())).is_some(), "{}", opened());
    let received = collector.received.lock().unwrap();
    let authorized = |path: &str| received.authorized.iter().any(|(to, _)| to == path);
    assert!(authorized("/v1/traces") && authorized("/v1/metrics"));
    let all = received.authorized.iter().all(|(_, with)| with == "Bearer let-me-in");
    assert!(all, "{:?}", received.authorized);
}

/// Nothing is sent to a collector with an untrusted certificate.
#[test]
fn nothing_goes_to_a_collector_that_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let collector = secure(folder.path());
    let other = folder.path().join("client.pem").display().to_string();
    let variables =
        [("OTEL_EXPORTER_OTLP_CERTIFICATE", &*other), ("OTEL_METRIC_EXPORT_INTERVAL", "50")];
    let served = Served::with(&["--otlp-endpoint", collector.endpoint()], &variables);
    let said = served.process.wait_for(PATIENCE, |line| {
        (line.contains("cannot export telemetry") && line.contains("certificate")).then_some(())
    });
    said.expect("it says that it does not trust it");
    assert!(collector.received.lock().unwrap().authorized.is_empty());
}

#[test]
fn files_for_tls_are_looked_at_before_anything_is_served() {
    let missing = "/nowhere/ca.pem";
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ws-guard"))
        .args(["serve", "--listen", "127.0.0.1:0", "--otlp-endpoint", "https://localhost:1"])
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", missing)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("OTEL_EXPORTER_OTLP_CERTIFICATE") && said.contains(missing), "{said}");
}
