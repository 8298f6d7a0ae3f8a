//! Spans of the companion server's connections.
//!
//! A connection is a trace: a span for all of it, which is exported when it ends, and below it
//! `onopen`, some of its `onmessage`, `onerror` and `onclose`, exported when they happen. Nothing
//! is kept by connection: its trace follows from its number.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchSpanProcessor, IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks,
        SpanProcessor,
    },
};

use crate::{
    record::{Ended, Origin, wall},
    trace::Trace,
};

/// Sampling of a connection's messages: the first and then one in this number.
const MESSAGES: u64 = 100;

/// Non-blocking creator of spans for the exporter; those without room are lost.
#[derive(Debug)]
pub struct Spans {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    ids: RandomIdGenerator,
    /// Distinction of this process's traces from others'.
    instance: u64,
}

/// Fields of a span in addition to the common ones.
struct Said {
    name: &'static str,
    kind: SpanKind,
    from: SystemTime,
    to: SystemTime,
    queue: usize,
    more: Vec<KeyValue>,
    status: Status,
}

impl Said {
    fn at(name: &'static str, time: SystemTime, queue: usize) -> Said {
        let (kind, status) = (SpanKind::Internal, Status::Unset);
        Said { name, kind, from: time, to: time, queue, more: Vec::new(), status }
    }
}

impl Trace for Spans {
    fn opened(&self, origin: &Origin, ping_interval: Duration) {
        let from = wall(origin.started).0;
        let to = from + Duration::from_micros(origin.handshake_us.into());
        self.child(origin, ping_interval, Said { from, to, ..Said::at("onopen", from, 0) });
    }

    fn wants_message(&self, number: u64) -> bool {
        number % MESSAGES == 1
    }

    fn message(&self, origin: &Origin, ping_interval: Duration, bytes: usize, queue: usize) {
        let size = KeyValue::new("message_size", bytes as i64);
        let said = Said::at("onmessage", SystemTime::now(), queue);
        self.child(origin, ping_interval, Said { more: vec![size], ..said });
    }

    fn id(&self, connection_id: u64) -> u128 {
        u128::from(self.instance) << 64 | u128::from(connection_id)
    }

    fn closed(&self, origin: &Origin, ping_interval: Duration, ended: &Ended) {
        let now = SystemTime::now();
        let more = vec![
            KeyValue::new("cause", ended.cause.name()),
            KeyValue::new("code", i64::from(ended.code())),
            KeyValue::new("reason", ended.reason().to_owned()),
            KeyValue::new("messages_in", ended.totals.messages_in as i64),
            KeyValue::new("messages_out", ended.totals.messages_out as i64),
        ];
        let status = match ended.cause.is_error() {
            true => Status::error(ended.cause.reason()),
            false => Status::Unset,
        };
        let said = |name| Said {
            more: more.clone(),
            status: status.clone(),
            ..Said::at(name, now, ended.queued)
        };
        if ended.cause.is_error() {
            self.child(origin, ping_interval, said("onerror"));
        }
        self.child(origin, ping_interval, said("onclose"));
        let whole =
            Said { from: wall(origin.started).0, kind: SpanKind::Server, ..said("connection") };
        self.export(origin, ping_interval, self.root(origin.id), SpanId::INVALID, whole);
    }
}

impl Spans {
    pub fn new(exporter: SpanExporter, resource: &Resource) -> Spans {
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(resource);
        let ids = RandomIdGenerator::default();
        let instance = u64::from_be_bytes(ids.new_span_id().to_bytes());
        let scope = InstrumentationScope::builder("ws-guard")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Spans { processor, scope, ids, instance }
    }

    /// Export waiting spans, and end.
    pub fn stop(&self) {
        if let Err(error) = self.processor.shutdown() {
            tracing::warn!("the last spans are lost: {error}");
        }
    }

    fn child(&self, origin: &Origin, ping_interval: Duration, said: Said) {
        self.export(origin, ping_interval, self.ids.new_span_id(), self.root(origin.id), said);
    }

    /// Return the span of a whole connection.
    fn root(&self, id: u64) -> SpanId {
        // 0 would be no span.
        SpanId::from_bytes((self.instance.rotate_left(32) ^ id).max(1).to_be_bytes())
    }

    fn export(
        &self,
        origin: &Origin,
        ping_interval: Duration,
        span: SpanId,
        parent: SpanId,
        said: Said,
    ) {
        let trace = TraceId::from_bytes(self.id(origin.id).to_be_bytes());
        let mut attributes = fields(origin, ping_interval, said.queue);
        attributes.extend(said.more);
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(
                trace,
                span,
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: said.kind,
            name: said.name.into(),
            start_time: said.from,
            end_time: said.to,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: said.status,
            instrumentation_scope: self.scope.clone(),
        });
    }
}

/// Return the fields that every span has.
fn fields(origin: &Origin, ping_interval: Duration, queue: usize) -> Vec<KeyValue> {
    let mut fields = vec![
        KeyValue::new("connection_id", origin.id as i64),
        KeyValue::new("region", origin.region.name().to_owned()),
        KeyValue::new("handshake_duration_ms", f64::from(origin.handshake_us) / 1e3),
        KeyValue::new("ping_interval_ms", ping_interval.as_millis() as i64),
        KeyValue::new("message_queue_size", queue as i64),
        KeyValue::new("client.address", origin.client.to_string()),
    ];
    let user = origin.identity.as_ref().and_then(|identity| identity.user_id.as_deref());
    fields.extend(user.map(|user| KeyValue::new("user_id", user.to_owned())));
    fields
}
