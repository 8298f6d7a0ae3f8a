//! Settings of `run` other than policy, and their table.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ws_guard_server::telemetry::{ENDPOINT_VARIABLE, Endpoint};

use crate::{
    domain::{
        address::{Given, Quoted},
        setting::{Setting, store, whole, word},
        tunnel::Tunnel,
    },
    guard::{AttachMode, DEFAULT_PIN_DIR, Selection, Selector, TableSizes},
    state::survey::FIRST,
};

/// Format of the log on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Location of the state file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StatePath {
    /// Default: under /var/lib/ws-guard, named after the pin directory.
    #[default]
    Usual,
    /// No file.
    Off,
    At(PathBuf),
}

impl StatePath {
    /// Return the file of the guard that is pinned in `pin_dir`.
    pub fn path(&self, pin_dir: &Path) -> Option<PathBuf> {
        let dir = Path::new("/var/lib/ws-guard");
        match (self, pin_dir.file_name()) {
            (StatePath::Off, _) => None,
            (StatePath::At(path), _) => Some(path.clone()),
            (StatePath::Usual, Some(name)) if pin_dir != Path::new(DEFAULT_PIN_DIR) => {
                Some(dir.join(format!("state-{}.json", name.to_string_lossy())))
            }
            (StatePath::Usual, _) => Some(dir.join("state.json")),
        }
    }
}

fn state_path(text: &str) -> Result<StatePath, String> {
    match text.trim() {
        "" => Err("it is empty: give a path, or none".into()),
        "none" => Ok(StatePath::Off),
        path => Ok(StatePath::At(path.into())),
    }
}

fn state_path_text(path: &StatePath) -> Vec<String> {
    match path {
        StatePath::Usual => Vec::new(),
        StatePath::Off => vec!["none".into()],
        StatePath::At(path) => vec![path.display().to_string()],
    }
}

/// Settings other than policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSettings {
    pub interfaces: Selection,
    pub attach: AttachMode,
    pub allow: Vec<Given>,
    pub tunnels: Vec<Tunnel>,
    pub max_flows: u32,
    pub max_sources: u32,
    pub metrics_listen: Option<SocketAddr>,
    /// Show addresses of clients on the metrics port's page.
    pub page_addresses: bool,
    /// Number of throttled sources named in `/metrics`.
    pub top_sources: u32,
    pub listen: Option<SocketAddr>,
    pub access_log: PathBuf,
    pub event_log: Option<PathBuf>,
    pub otlp_endpoint: Option<Endpoint>,
    pub state_file: StatePath,
    pub log_format: LogFormat,
    pub kernel_debug: bool,
    /// Reattach what other processes detach.
    pub reattach: bool,
}

impl Default for RunSettings {
    fn default() -> RunSettings {
        RunSettings {
            interfaces: Selection::default(),
            attach: AttachMode::Auto,
            allow: Vec::new(),
            tunnels: Vec::new(),
            max_flows: 32_768,
            max_sources: 32_768,
            metrics_listen: None,
            page_addresses: false,
            top_sources: 0,
            listen: None,
            access_log: PathBuf::from("-"),
            event_log: None,
            otlp_endpoint: None,
            state_file: StatePath::Usual,
            log_format: LogFormat::Text,
            kernel_debug: false,
            reattach: true,
        }
    }
}

impl RunSettings {
    pub fn table_sizes(&self) -> TableSizes {
        TableSizes::new(self.max_flows, self.max_sources)
    }

    /// Return the names of changed settings that take effect only at a restart.
    pub fn restart_needed(&self, new: &RunSettings) -> Vec<String> {
        const LIVE: [&str; 5] = ["interface", "pod-interface", "allow", "reattach", "top-sources"];
        let waits = |setting: &&Setting<_>| {
            !LIVE.contains(&setting.name) && (setting.get)(self) != (setting.get)(new)
        };
        RUN.iter().filter(waits).map(|setting| setting.name.to_string()).collect()
    }
}

const ATTACH: [(&str, AttachMode); 5] = [
    ("auto", AttachMode::Auto),
    ("xdp-native", AttachMode::XdpNative),
    ("xdp-generic", AttachMode::XdpGeneric),
    ("tcx", AttachMode::Tcx),
    ("clsact", AttachMode::Clsact),
];
const LOG_FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];

fn name_of<V: PartialEq>(words: &[(&str, V)], value: &V) -> Vec<String> {
    words.iter().filter(|(_, v)| v == value).map(|(name, _)| name.to_string()).collect()
}

fn select(selectors: &mut Vec<Selector>, text: &str) -> Result<(), String> {
    let selector = Selector::parse(text)?;
    if !selectors.contains(&selector) {
        selectors.push(selector);
    }
    Ok(())
}

fn selector_texts(selectors: &[Selector]) -> Vec<String> {
    selectors.iter().map(Selector::to_string).collect()
}

/// Parse an address and a port; without an address, all of the host's.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    // Shorthand of many servers: all addresses of the host.
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_string() };
    full.trim().parse().map_err(|_| {
        format!(
            "{} is not an address and port: write it as 127.0.0.1:9464 or [::]:9464",
            Quoted(text)
        )
    })
}

fn given_text(given: &Given) -> String {
    match given {
        Given::Address(address) => address.to_string(),
        Given::Network(network) => network.to_string(),
    }
}

const fn single(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    set: fn(&mut RunSettings, &str) -> Result<(), String>,
    get: fn(&RunSettings) -> Vec<String>,
) -> Setting<RunSettings> {
    Setting { name, value, help, many: false, seed: None, set, get, clear: |_| {} }
}

/// Settings of `run` other than policy.
pub static RUN: [Setting<RunSettings>; 18] = [
    Setting {
        name: "interface",
        value: "IF",
        help: "Uplink, where clients' packets arrive: interface name, or pattern such as 'eth*', which also matches later interfaces",
        many: true,
        seed: None,
        set: |s, text| select(&mut s.interfaces.uplinks, text),
        get: |s| selector_texts(&s.interfaces.uplinks),
        clear: |s| s.interfaces.uplinks.clear(),
    },
    Setting {
        name: "pod-interface",
        value: "IF",
        help: "Host's side of pods' interfaces, where clients' packets leave to pods: name, or pattern such as 'cali*'",
        many: true,
        seed: None,
        set: |s, text| select(&mut s.interfaces.pods, text),
        get: |s| selector_texts(&s.interfaces.pods),
        clear: |s| s.interfaces.pods.clear(),
    },
    single(
        "attach",
        "auto|xdp-native|xdp-generic|tcx|clsact",
        "How to attach the client side; auto: the first of these that works. Pods' interfaces take TCX or clsact",
        |s, text| store(&mut s.attach, word(text, &ATTACH)),
        |s| name_of(&ATTACH, &s.attach),
    ),
    Setting {
        name: "allow",
        value: "CIDR",
        help: "Address or network that is counted and never acted on",
        many: true,
        seed: None,
        set: |s, text| {
            s.allow.push(text.trim().parse()?);
            Ok(())
        },
        get: |s| s.allow.iter().map(given_text).collect(),
        clear: |s| s.allow.clear(),
    },
    Setting {
        name: "tunnel",
        value: "KIND[:PORT]",
        help: "Follow clients inside these tunnels too: vxlan[:4789], geneve[:6081], ipip",
        many: true,
        seed: None,
        set: |s, text| text.parse::<Tunnel>()?.add_to(&mut s.tunnels),
        get: |s| s.tunnels.iter().map(Tunnel::to_string).collect(),
        clear: |s| s.tunnels.clear(),
    },
    single(
        "max-flows",
        "N",
        "Size of the flow table, 16 to 4194304: 1104 bytes a connection; fixed while the pins live",
        |s, text| store(&mut s.max_flows, whole(text, 16, 1 << 22)),
        |s| vec![s.max_flows.to_string()],
    ),
    single(
        "max-sources",
        "N",
        "Size of the source table, 16 to 4194304: 472 bytes a source; fixed while the pins live",
        |s, text| store(&mut s.max_sources, whole(text, 16, 1 << 22)),
        |s| vec![s.max_sources.to_string()],
    ),
    single(
        "metrics-listen",
        "ADDR:PORT",
        "Serve a page for browsers, /metrics, /healthz, /readyz and /health over HTTP on this address",
        |s, text| store(&mut s.metrics_listen, listen_address(text).map(Some)),
        |s| s.metrics_listen.iter().map(SocketAddr::to_string).collect(),
    ),
    single(
        "page-addresses",
        "",
        "Show addresses of clients on the page of --metrics-listen, which has no login",
        |s, text| store(&mut s.page_addresses, word(text, &SWITCH)),
        |s| vec![s.page_addresses.to_string()],
    ),
    single(
        "top-sources",
        "N",
        "Name at most this number of throttled sources, those with the most pings, in /metrics, up to 50; default: 0, no addresses of clients",
        |s, text| store(&mut s.top_sources, whole(text, 0, FIRST as u64)),
        |s| vec![s.top_sources.to_string()],
    ),
    single(
        "listen",
        "ADDR",
        "Address and port for the companion WebSocket server, see `ws-guard serve`; default: no server",
        |s, text| store(&mut s.listen, listen_address(text).map(Some)),
        |s| s.listen.iter().map(SocketAddr::to_string).collect(),
    ),
    single(
        "access-log",
        "PATH",
        "File to append the companion server's access log to; -: standard output",
        |s, text| store(&mut s.access_log, Ok(PathBuf::from(text))),
        |s| vec![s.access_log.display().to_string()],
    ),
    single(
        "event-log",
        "PATH",
        "Write every event as a line of JSON to this file, with four older ones of 64 MiB; -: standard output; otlp: to the collector of --otlp-endpoint",
        |s, text| store(&mut s.event_log, Ok(Some(PathBuf::from(text)))),
        |s| s.event_log.iter().map(|path| path.display().to_string()).collect(),
    ),
    Setting {
        seed: Some(ENDPOINT_VARIABLE),
        ..single(
            "otlp-endpoint",
            "URL",
            "Collector to send metrics to, and traces of the companion server's connections, over OTLP: http://collector:4318, or https; events with --event-log otlp",
            |s, text| store(&mut s.otlp_endpoint, text.parse().map(Some)),
            |s| s.otlp_endpoint.iter().map(Endpoint::to_string).collect(),
        )
    },
    single(
        "state-file",
        "PATH|none",
        "File for decisions of allow, throttle and policy set --cidr, to survive a reboot; default: under /var/lib/ws-guard",
        |s, text| store(&mut s.state_file, state_path(text)),
        |s| state_path_text(&s.state_file),
    ),
    single(
        "log-format",
        "text|json",
        "Format of the log on standard error; RUST_LOG sets its level",
        |s, text| store(&mut s.log_format, word(text, &LOG_FORMATS)),
        |s| name_of(&LOG_FORMATS, &s.log_format),
    ),
    single(
        "reattach",
        "",
        "Restore removed programs, filters, links and their pins. Their removal is reported in any case",
        |s, text| store(&mut s.reattach, word(text, &SWITCH)),
        |s| vec![s.reattach.to_string()],
    ),
    single(
        "kernel-debug",
        "",
        "Log the kernel programs' decisions, through aya-log; slows down each packet",
        |s, text| store(&mut s.kernel_debug, word(text, &SWITCH)),
        |s| vec![s.kernel_debug.to_string()],
    ),
];
