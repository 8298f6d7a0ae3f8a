//! Events as log records.

use std::time::SystemTime;

use opentelemetry::{
    Key,
    logs::{AnyValue, LogRecord, Logger, LoggerProvider, Severity},
};
use opentelemetry_otlp::LogExporter;
use opentelemetry_sdk::{
    Resource,
    logs::{SdkLogger, SdkLoggerProvider},
};
use serde_json::{Map, Value};

/// Severity of an event for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    const fn severity(self) -> (Severity, &'static str) {
        match self {
            Level::Debug => (Severity::Debug, "DEBUG"),
            Level::Info => (Severity::Info, "INFO"),
            Level::Warn => (Severity::Warn, "WARN"),
            Level::Error => (Severity::Error, "ERROR"),
        }
    }
}

/// Event as a log record.
#[derive(Clone, Debug)]
pub struct Record {
    pub name: &'static str,
    pub level: Level,
    pub time: SystemTime,
    pub text: String,
    pub fields: Map<String, Value>,
}

/// Non-blocking sender of records to the exporter; those without room are lost.
#[derive(Debug)]
pub struct Logs {
    provider: SdkLoggerProvider,
    logger: SdkLogger,
}

impl Logs {
    pub fn new(exporter: LogExporter, resource: Resource) -> Logs {
        let builder = SdkLoggerProvider::builder().with_resource(resource);
        let provider = builder.with_batch_exporter(exporter).build();
        let logger = provider.logger("ws-guard");
        Logs { provider, logger }
    }

    pub fn emit(&self, event: Record) {
        let mut record = self.logger.create_log_record();
        let (severity, name) = event.level.severity();
        record.set_event_name(event.name);
        record.set_severity_number(severity);
        record.set_severity_text(name);
        record.set_timestamp(event.time);
        record.set_observed_timestamp(SystemTime::now());
        record.set_body(event.text.into());
        let fields = event.fields.into_iter().filter_map(|(key, value)| Some((key, any(value)?)));
        record.add_attributes(fields);
        self.logger.emit(record);
    }

    /// Export waiting records, and end.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("the last logs are lost: {error}");
        }
    }
}

/// Convert a JSON value; `None` for null.
fn any(value: Value) -> Option<AnyValue> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => value.into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64()?.into(),
        },
        Value::String(text) => text.into(),
        Value::Array(values) => {
            AnyValue::ListAny(Box::new(values.into_iter().filter_map(any).collect()))
        }
        Value::Object(fields) => {
            let fields = fields.into_iter();
            let fields = fields.filter_map(|(key, value)| Some((Key::from(key), any(value)?)));
            AnyValue::Map(Box::new(fields.collect()))
        }
    })
}
