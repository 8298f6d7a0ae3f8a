//! A receiver of OTLP over HTTP, with and without TLS.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::{Metric, metric::Data, number_data_point::Value::AsDouble},
    trace::v1::Span,
};
use prost::Message;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Received telemetry.
#[derive(Default)]
pub struct Received {
    pub spans: Vec<Span>,
    pub logs: Vec<LogRecord>,
    /// The latest of each export.
    pub metrics: Vec<Metric>,
    pub resources: Vec<String>,
    /// Set once something came with gzip.
    pub packed: bool,
    /// Paths of requests, and their authorization.
    pub authorized: Vec<(String, String)>,
}

/// A collector that runs until the test ends.
pub struct Collector {
    endpoint: String,
    pub received: Arc<Mutex<Received>>,
}

impl Collector {
    pub fn start() -> Collector {
        Collector::on(TcpListener::bind("127.0.0.1:0").unwrap(), None)
    }

    /// Start it on a listener of any namespace, over TLS if configured.
    pub fn on(listener: TcpListener, tls: Option<ServerConfig>) -> Collector {
        let tls = tls.map(Arc::new);
        let address = listener.local_addr().unwrap();
        let endpoint = match &tls {
            // The name in its certificate.
            Some(_) => format!("https://localhost:{}", address.port()),
            None => format!("http://{address}"),
        };
        let received = Arc::<Mutex<Received>>::default();
        let into = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                match &tls {
                    None => receive(stream, &into),
                    Some(tls) => {
                        let session = ServerConnection::new(tls.clone()).unwrap();
                        receive(StreamOwned::new(session, stream), &into);
                    }
                }
            }
        });
        Collector { endpoint, received }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn spans(&self, name: &str) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        received.spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    /// Return the sum of a counter's or gauge's points with these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
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

/// Read one request, and answer it.
/// A client that does not trust the certificate sends none.
fn receive(stream: impl Read + Write, into: &Mutex<Received>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut length, mut authorization, mut packed) = (0, String::new(), false);
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = value.to_owned(),
            "content-encoding" => packed = value == "gzip",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    if packed {
        let mut whole = Vec::new();
        flate2::read::GzDecoder::new(&*body).read_to_end(&mut whole).unwrap();
        body = whole;
    }
    let mut received = into.lock().unwrap();
    received.packed |= packed;
    received.authorized.push((path.clone(), authorization));
    match path.as_str() {
        "/v1/traces" | "/own/traces?key=1" => {
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
        "/v1/logs" => {
            let request = ExportLogsServiceRequest::decode(&*body).unwrap();
            for resource in request.resource_logs {
                let attributes = resource.resource.unwrap().attributes;
                received.resources.extend(text(&attributes, "service.name"));
                let records = resource.scope_logs.into_iter().flat_map(|scope| scope.log_records);
                received.logs.extend(records);
            }
        }
        path => panic!("{path}"),
    }
    drop(received);
    let stream = reader.get_mut();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    stream.flush().unwrap();
}

/// Return an attribute as text.
pub fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}
