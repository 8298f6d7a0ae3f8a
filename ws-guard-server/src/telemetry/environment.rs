//! Environment variables of OpenTelemetry, and those that are not supported.

use std::{collections::BTreeMap, time::Duration};

use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::Endpoint;

/// Default time-out of a request to the collector.
const TIMEOUT: Duration = Duration::from_secs(10);
const PREFIX: &str = "OTEL_EXPORTER_OTLP_";
/// Variables that are supported in addition to those of exporters.
const KNOWN: [&str; 16] = [
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_CONCURRENT_EXPORTS",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BLRP_EXPORT_TIMEOUT",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
];
/// Exporter variables, of all signals or one (`OTEL_EXPORTER_OTLP_LOGS_ENDPOINT`).
const OF_SIGNALS: [&str; 5] = ["ENDPOINT", "HEADERS", "COMPRESSION", "TIMEOUT", "PROTOCOL"];

/// Variables that begin with `OTEL_`, without empty ones.
/// See the OpenTelemetry Environment Variable Specification.
pub struct Environment(BTreeMap<String, String>);

/// Destination and manner of exporting one signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    pub address: String,
    pub secure: bool,
    pub gzip: bool,
    pub timeout: Duration,
    /// Headers as `a=1,b=2`.
    pub headers: String,
}

/// Parse one of [`Signal::headers`]: `name=value`, perhaps percent-encoded.
pub fn header(item: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = item.split_once('=')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let value = percent_decode_str(value.trim()).decode_utf8_lossy();
    Some((name, HeaderValue::from_str(&value).ok()?))
}

/// Format an error without the value, which is usually a secret.
fn wrong_header(variable: &str, item: &str) -> String {
    let name = item.split_once('=').map_or("what has no =", |(name, _)| name.trim());
    format!(
        "{variable}: {name:?} is no header: write name=value, percent-encoded, with commas between them"
    )
}

impl Environment {
    pub fn of_process() -> Environment {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Environment::new(std::env::vars_os().filter_map(text))
    }

    fn new(variables: impl Iterator<Item = (String, String)>) -> Environment {
        let ours = |(name, value): &(String, String)| {
            name.starts_with("OTEL_") && !value.trim().is_empty()
        };
        Environment(variables.filter(ours).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim())
    }

    pub fn is_disabled(&self) -> bool {
        self.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Return how `TRACES`, `METRICS` or `LOGS` are exported, if they are.
    /// `base` is the destination of all without an endpoint of their own.
    pub fn signal(&self, name: &str, base: Option<&Endpoint>) -> Result<Option<Signal>, String> {
        if self.get(&format!("OTEL_{name}_EXPORTER")).is_some_and(|exporter| exporter == "none") {
            return Ok(None);
        }
        let variable = format!("{PREFIX}{name}_ENDPOINT");
        let (address, secure) = match (self.get(&variable), base) {
            // Unchanged: nothing is appended.
            (Some(own), _) => {
                let own: Endpoint = own.parse().map_err(|error| format!("{variable}: {error}"))?;
                (own.to_string(), own.is_secure())
            }
            (None, Some(base)) => (base.of(&name.to_ascii_lowercase()), base.is_secure()),
            (None, None) => return Ok(None),
        };
        let gzip = match self.of(name, "COMPRESSION") {
            None | Some((_, "none")) => false,
            Some((_, "gzip")) => true,
            Some((variable, other)) => {
                return Err(format!("{variable}: {other:?} is not known: set gzip or none"));
            }
        };
        let timeout = match self.of(name, "TIMEOUT") {
            None => TIMEOUT,
            Some((variable, text)) => {
                let parsed = text.parse().ok().filter(|ms| (1..=3_600_000).contains(ms));
                let wrong =
                    || format!("{variable}: {text:?} is no number of milliseconds up to an hour");
                Duration::from_millis(parsed.ok_or_else(wrong)?)
            }
        };
        let headers = match self.of(name, "HEADERS") {
            None => String::new(),
            Some((variable, text)) => {
                for item in text.split(',').filter(|item| !item.trim().is_empty()) {
                    header(item).ok_or_else(|| wrong_header(&variable, item))?;
                }
                text.into()
            }
        };
        Ok(Some(Signal { address, secure, gzip, timeout, headers }))
    }

    /// Return an exporter's variable: that of the signal, or that of all.
    fn of(&self, signal: &str, what: &str) -> Option<(String, &str)> {
        let names = [format!("{PREFIX}{signal}_{what}"), format!("{PREFIX}{what}")];
        names.into_iter().find_map(|name| Some((name.clone(), self.get(&name)?)))
    }

    /// Return unsupported variables, each with what is done instead.
    pub fn in_vain(&self) -> Vec<String> {
        let said = |(name, value): (&String, &String)| {
            let (name, value) = (name.as_str(), value.trim());
            let of_exporter = name.strip_prefix(PREFIX).map(|rest| {
                let signals = ["TRACES_", "METRICS_", "LOGS_"];
                signals.iter().find_map(|signal| rest.strip_prefix(signal)).unwrap_or(rest)
            });
            match (name, of_exporter) {
                (_, Some("PROTOCOL")) if value != "http/protobuf" => {
                    Some(format!("{name}={value}: http/protobuf is what is spoken"))
                }
                (_, Some(what)) if OF_SIGNALS.contains(&what) => None,
                ("OTEL_TRACES_EXPORTER" | "OTEL_METRICS_EXPORTER" | "OTEL_LOGS_EXPORTER", _) => {
                    let known = ["otlp", "none"].contains(&value);
                    (!known).then(|| format!("{name}={value}: otlp is what is exported"))
                }
                _ if KNOWN.contains(&name) => None,
                _ => Some(format!("{name} is not honoured")),
            }
        };
        self.0.iter().filter_map(said).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::new(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    fn base() -> Endpoint {
        "http://all:4318".parse().unwrap()
    }

    #[test]
    fn a_signal_has_an_endpoint_of_its_own_or_that_of_all() {
        let own = environment(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/custom?key=1"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=1"),
        ]);
        let traces = own.signal("TRACES", Some(&base())).unwrap().unwrap();
        assert_eq!(traces.address, "https://t/custom?key=1");
        assert!(traces.secure && traces.gzip && traces.headers.is_empty());
        assert_eq!(traces.timeout, Duration::from_millis(1500));
        let metrics = own.signal("METRICS", Some(&base())).unwrap().unwrap();
        assert_eq!(metrics.address, "http://all:4318/v1/metrics");
        assert!(!metrics.secure && !metrics.gzip && metrics.headers == "a=1");
        assert_eq!(own.signal("METRICS", None), Ok(None));
        let off = environment(&[("OTEL_METRICS_EXPORTER", "none")]);
        assert_eq!(off.signal("METRICS", Some(&base())), Ok(None));
    }

    #[test]
    fn headers_are_pairs_or_refused() {
        let with = |text| {
            environment(&[("OTEL_EXPORTER_OTLP_HEADERS", text)]).signal("TRACES", Some(&base()))
        };
        for text in ["api-key=abc, x = y=z,", "a=Bearer%20b%2C", "a="] {
            assert_eq!(with(text).unwrap().unwrap().headers, text.trim());
        }
        for text in ["a b=secret", "a=b,secret", "=secret", "a=%0Asecret", "é=secret"] {
            let error = with(text).unwrap_err();
            assert!(error.starts_with("OTEL_EXPORTER_OTLP_HEADERS: "), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_empty_is_not_there() {
        let empty = environment(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ""),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", " "),
            ("OTEL_SDK_DISABLED", ""),
            ("OTEL_TRACES_SAMPLER", ""),
        ]);
        assert_eq!(empty.signal("TRACES", None), Ok(None));
        assert!(empty.signal("TRACES", Some(&base())).unwrap().is_some());
        assert!(!empty.is_disabled() && empty.in_vain().is_empty());
        assert!(environment(&[("OTEL_SDK_DISABLED", "True")]).is_disabled());
    }

    #[test]
    fn what_is_wrong_names_its_variable() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ] {
            let error = environment(&[(name, value)]).signal("TRACES", Some(&base())).unwrap_err();
            assert!(error.starts_with(name) && error.contains(value), "{error}");
        }
        let vain = environment(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/ca.pem"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
        ]);
        assert_eq!(
            vain.in_vain(),
            [
                "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: http/protobuf is what is spoken",
                "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE is not honoured",
                "OTEL_TRACES_EXPORTER=zipkin: otlp is what is exported",
                "OTEL_TRACES_SAMPLER is not honoured",
            ]
        );
    }
}
