//! Traces and metrics, as an OTLP receiver gets them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data, number_data_point::Value::AsDouble},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use ws_guard_testkit::frame::{Frame, opcode};

use super::{
    served::Served,
    stage::{Client, PATIENCE, connect, wait_for},
};

/// What has been received.
#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    /// The latest of each export.
    metrics: Vec<Metric>,
    resources: Vec<String>,
}

/// A receiver of OTLP over HTTP.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Received>>::default();
        let into = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                receive(stream.unwrap(), &into);
            }
        });
        Collector { address, received }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn spans(&self, name: &str) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        received.spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    /// The sum of a counter's or gauge's points with these labels.
    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let received = self.received.lock().unwrap();
        let metric = received.metrics.iter().find(|metric| metric.name == name);
        let points = match metric.and_then(|metric| metric.data.clone()) {
            Some(Data::Sum(sum)) => sum.data_points,
            Some(Data::Gauge(gauge)) => gauge.data_points,
            _ => Vec::new(),
        };
        let wanted = |attributes: &[KeyValue]| {
            labels.iter().all(|(key, value)| text(attributes, key).as_deref() == Some(value))
        };
        let values = points.iter().filter(|point| wanted(&point.attributes));
        values.map(|point| if let Some(AsDouble(value)) = point.value { value } else { 0.0 }).sum()
    }
}

/// One request, and its answer.
fn receive(stream: TcpStream, into: &Mutex<Received>) {
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let field = line.trim().to_ascii_lowercase();
        if let Some(value) = field.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        if field.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut received = into.lock().unwrap();
    match path.as_str() {
        "/v1/traces" => {
            let request = ExportTraceServiceRequest::decode(&*body).unwrap();
            for resource in request.resource_spans {
                let attributes = resource.resource.unwrap().attributes;
                received.resources.extend(text(&attributes, "service.name"));
                received.spans.extend(resource.scope_spans.into_iter().flat_map(|s| s.spans));
            }
        }
        "/v1/metrics" => {
            let request = ExportMetricsServiceRequest::decode(&*body).unwrap();
            for resource in request.resource_metrics {
                let attributes = resource.resource.unwrap().attributes;
                received.resources.extend(text(&attributes, "service.name"));
                received.metrics =
                    resource.scope_metrics.into_iter().flat_map(|s| s.metrics).collect();
            }
        }
        path => panic!("{path}"),
    }
    drop(received);
    (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
}

/// An attribute, as text.
fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

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
    let query = ["--user-from", "query:user", "--region-from", "query:region"];
    let quick = [("OTEL_METRIC_EXPORT_INTERVAL", "100"), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    Served::with(&[&query[..], &["--otlp-endpoint", &collector.endpoint()]].concat(), &quick)
}

/// A client that says who it is.
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
    // Something that is an error: a reserved opcode.
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

/// The last spans and numbers go out before the process ends.
#[test]
fn what_waits_is_exported_at_the_end() {
    let collector = Collector::start();
    let mut served = Served::with(&["--otlp-endpoint", &collector.endpoint()], &[]);
    let mut client = Client::connect(served.address);
    served.process.signal(Signal::SIGTERM).unwrap();
    assert_eq!(client.close_code(), Some(1001));
    drop(client);
    wait_for(PATIENCE, || served.process.ended().unwrap()).expect("it ends");
    let whole = collector.spans("connection");
    assert_eq!(text(&whole[0].attributes, "cause").as_deref(), Some("shutdown"));
    assert_eq!(collector.metric("wsguard_server_closed_total", &[("cause", "shutdown")]), 1.0);
}

/// A collector that is not there costs connections nothing, and is said once.
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
