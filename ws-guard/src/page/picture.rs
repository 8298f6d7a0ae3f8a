//! Content of the page at one moment.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Router, body::Body, http::Request};
use serde::Serialize;
use tower::ServiceExt;
use ws_guard_common::maps::SourceKey;
use ws_guard_server::view::ConnectionView;

use super::{history::Point, names::Names};
use crate::{
    domain::{
        clock::Timestamp,
        event::EventView,
        event_filter::EventFilter,
        source::{SourceState, SourceView},
        status::Status,
    },
    guard::Mode,
    state::{
        State,
        survey::{Server, Survey},
    },
};

/// Maximum number of events shown, and of those about one client.
const EVENTS: usize = 40;
const STORY: usize = 6;
/// Maximum number of clients shown.
const CLIENTS: usize = 50;
/// Maximum number of the companion server's connections shown.
pub const CONNECTIONS: usize = 50;
/// Size limit of the companion server's answer.
const LARGEST: usize = 1 << 20;
/// Percentage in use above which a table is reported.
const CROWDED: u64 = 80;

#[derive(Serialize)]
pub struct Picture {
    time: Timestamp,
    version: &'static str,
    uptime_seconds: u64,
    /// Set if addresses of clients are shown.
    addresses: bool,
    health: Vec<Note>,
    policy: Policy,
    sources: u32,
    throttled: u32,
    connections_open: u32,
    connections_paced: u32,
    pub point: Option<Point>,
    pub all_servers: ServerView,
    servers: Vec<ServerView>,
    clients: Vec<ClientView>,
    /// Throttled clients that are left out.
    clients_more: u32,
    /// Null without a companion server.
    pub connections: Option<Connections>,
    /// Latest events, newest first.
    events: Vec<EventLine>,
}

/// Line about the guard's health.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Note {
    level: Level,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Good,
    Look,
    Bad,
}

#[derive(Serialize)]
struct Policy {
    action: &'static str,
    max_ping_rate: u32,
    window_seconds: u32,
    connection_share: u32,
    ports: usize,
}

/// Open connections of a server, and their latest heartbeats.
#[derive(Default, Serialize)]
pub struct ServerView {
    /// Empty for the servers that are left out.
    server: String,
    connections: u32,
    paced: u32,
    beating: u64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    slowest_ms: Option<f64>,
}

impl ServerView {
    fn new(server: String, counted: &Server) -> ServerView {
        ServerView {
            server,
            connections: counted.connections,
            paced: counted.paced,
            beating: counted.beating(),
            p50_ms: counted.percentile_ms(50.0),
            p99_ms: counted.percentile_ms(99.0),
            slowest_ms: counted.percentile_ms(100.0),
        }
    }
}

/// Client that is throttled, or has paced connections.
#[derive(Serialize)]
struct ClientView {
    name: String,
    port: Option<u16>,
    throttled: bool,
    manual: bool,
    banned: bool,
    pings_in_window: u32,
    pings_total: u64,
    defused_total: u64,
    dropped_total: u64,
    connections: u32,
    paced: u32,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// Latest events about it, newest last.
    story: Vec<EventLine>,
}

#[derive(Clone, Serialize)]
struct EventLine {
    seq: u64,
    time: Timestamp,
    kind: String,
    text: String,
}

impl EventLine {
    fn new(event: &EventView, names: &Names) -> EventLine {
        EventLine {
            seq: event.seq,
            time: event.time,
            kind: event.kind.to_string(),
            text: names.event(event),
        }
    }
}

/// Companion server's connections that need attention first.
#[derive(Clone, Default, Serialize)]
pub struct Connections {
    rows: Vec<ConnectionRow>,
    /// Reason why they are missing.
    failed: Option<String>,
}

#[derive(Clone, Serialize)]
struct ConnectionRow {
    id: u64,
    client: String,
    state: String,
    opened: Timestamp,
    cause: Option<String>,
    code: Option<u16>,
    heartbeat_rtt_ms: Option<f64>,
    message_queue_size: u64,
    messages_in: u64,
    messages_out: u64,
    pings_in: u64,
    pings_ignored: u64,
}

impl Connections {
    /// Request the connections from the companion server, as the command line does.
    pub async fn ask(companion: &Router, names: &Names) -> Connections {
        match Connections::read(companion).await {
            Ok(views) => {
                let row = |view: &ConnectionView| ConnectionRow::new(view, names);
                Connections { rows: views.iter().map(row).collect(), failed: None }
            }
            Err(error) => {
                tracing::debug!("the page has no connections: {error}");
                let failed = Some("the companion server does not answer".into());
                Connections { failed, ..Connections::default() }
            }
        }
    }

    async fn read(companion: &Router) -> anyhow::Result<Vec<ConnectionView>> {
        let path = format!("/v1/connections?first={CONNECTIONS}");
        let request = Request::get(path).body(Body::empty())?;
        let response = companion.clone().oneshot(request).await?;
        let body = axum::body::to_bytes(response.into_body(), LARGEST).await?;
        Ok(serde_json::from_slice(&body)?)
    }
}

impl ConnectionRow {
    fn new(view: &ConnectionView, names: &Names) -> ConnectionRow {
        ConnectionRow {
            id: view.id,
            client: names.of(&view.client).into_owned(),
            state: view.state.to_string(),
            opened: view.opened,
            cause: view.cause.as_ref().map(ToString::to_string),
            code: view.code,
            heartbeat_rtt_ms: view.heartbeat_rtt_ms,
            message_queue_size: view.message_queue_size,
            messages_in: view.totals.messages_in,
            messages_out: view.totals.messages_out,
            pings_in: view.totals.pings_in,
            pings_ignored: view.totals.pings_ignored,
        }
    }
}

impl Picture {
    /// Return the sources to show.
    /// Throttled ones are first, in descending order of pings, followed by those with paced
    /// connections.
    pub fn chosen(survey: &Survey) -> Vec<SourceKey> {
        let worst = || survey.worst.iter().map(|(key, _)| key);
        let paced = survey.paced.iter().filter(|key| !worst().any(|known| known == *key));
        worst().chain(paced).copied().take(CLIENTS).collect()
    }

    /// Create all but the companion server's connections; `clients` were chosen before.
    pub fn new(
        state: &State,
        names: &Names,
        status: &Status,
        survey: &Survey,
        clients: &[SourceView],
    ) -> Picture {
        let (events, _) = state.events.follow(0, EventFilter::default());
        let mut all = Server::default();
        survey.servers.values().for_each(|server| all.merge(server));
        let server = |(address, counted): (&Option<std::net::SocketAddr>, &Server)| {
            let name = address.map_or(String::new(), |address| address.to_string());
            ServerView::new(name, counted)
        };
        let mut servers: Vec<ServerView> = survey.servers.iter().map(server).collect();
        servers.sort_by_key(|server| {
            (server.server.is_empty(), std::cmp::Reverse(server.connections))
        });
        let stories = stories(&events, clients, names);
        Picture {
            time: Timestamp::now(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: status.uptime_seconds.unwrap_or(0),
            addresses: names.shows_addresses(),
            health: health(state.ready(), status, names),
            policy: Policy {
                action: status.policy.action.name(),
                max_ping_rate: status.policy.max_ping_rate,
                window_seconds: status.policy.window_seconds,
                connection_share: status.policy.connection_share,
                ports: status.policy.ports.len(),
            },
            sources: status.sources,
            throttled: status.throttled,
            connections_open: status.flow_states.live(),
            connections_paced: status.flow_states.paced,
            point: None,
            all_servers: ServerView::new(String::new(), &all),
            servers,
            clients: clients.iter().map(|view| client(view, names, &stories)).collect(),
            clients_more: survey.throttled.saturating_sub(survey.worst.len() as u32),
            connections: None,
            events: events
                .iter()
                .rev()
                .take(EVENTS)
                .map(|event| EventLine::new(event, names))
                .collect(),
        }
    }
}

/// Return the latest events about each client.
fn stories(
    events: &[Arc<EventView>],
    clients: &[SourceView],
    names: &Names,
) -> BTreeMap<String, Vec<EventLine>> {
    let mut stories: BTreeMap<String, Vec<EventLine>> =
        clients.iter().map(|client| (client.source.clone(), Vec::new())).collect();
    for event in events.iter().rev() {
        let story = event.source.as_ref().and_then(|source| stories.get_mut(source));
        if let Some(story) = story.filter(|story| story.len() < STORY) {
            story.push(EventLine::new(event, names));
        }
    }
    stories.values_mut().for_each(|story| story.reverse());
    stories
}

fn client(
    view: &SourceView,
    names: &Names,
    stories: &BTreeMap<String, Vec<EventLine>>,
) -> ClientView {
    ClientView {
        name: names.of(&view.source).into_owned(),
        port: view.port,
        throttled: view.state == SourceState::Throttled,
        manual: view.manual,
        banned: view.banned,
        pings_in_window: view.pings_in_window,
        pings_total: view.pings_total,
        defused_total: view.defused_total,
        dropped_total: view.dropped_total,
        connections: view.connections,
        paced: view.paced,
        since: view.throttled_since,
        until: view.throttled_until,
        story: stories.get(&view.source).cloned().unwrap_or_default(),
    }
}

/// Return notes on the guard's health, the worst first.
fn health(ready: Result<(), String>, status: &Status, names: &Names) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |level, text: String| notes.push(Note { level, text });
    match ready {
        Ok(()) => {
            let interfaces = status.interfaces.len();
            let many = if interfaces == 1 { "interface" } else { "interfaces" };
            note(Level::Good, format!("guarding {interfaces} {many}"));
        }
        Err(why) => note(Level::Bad, format!("not ready: {why}")),
    }
    let generic = |mode: Option<Mode>| mode == Some(Mode::XdpGeneric);
    for interface in status.interfaces.iter().filter(|interface| generic(interface.ingress)) {
        note(
            Level::Look,
            format!("{} is attached in generic mode, which is slower", interface.name),
        );
    }
    if let Some(config) = &status.config {
        if config.errors.is_some() {
            note(Level::Bad, "the configuration was refused; the one before is in force".into());
        }
        if !config.restart_needed.is_empty() {
            note(Level::Look, format!("waits for a restart: {}", config.restart_needed.join(", ")));
        }
        if !config.overrides.is_empty() {
            note(Level::Look, "an operator changed the policy against the configuration".into());
        }
    }
    for (name, table) in status.tables.named() {
        let percent = u64::from(table.entries) * 100 / u64::from(table.capacity.max(1));
        // The other tables make room by themselves when full.
        if ["flows", "sources", "rules", "coarse"].contains(&name) && percent >= CROWDED {
            note(Level::Look, format!("table {name} is {percent} % full"));
        }
    }
    for suspect in &status.proxies_suspected {
        let peer = suspect.peer.to_string();
        let peer = names.of(&peer);
        note(Level::Look, format!("{peer} may be a proxy: {suspect}"));
    }
    if status.events.lost > 0 {
        note(
            Level::Look,
            format!("{} events were lost since the guard was loaded", status.events.lost),
        );
    }
    notes.sort_by_key(|note| std::cmp::Reverse(note.level));
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        status::{EventLoss, Occupancy},
        suspects::SuspectedProxy,
    };

    #[test]
    fn the_worst_comes_first_and_no_address_shows() {
        let mut status =
            Status { events: EventLoss { lost: 3, suppressed: 0 }, ..Status::default() };
        status.tables.flows = Occupancy { entries: 81, capacity: 100 };
        status.tables.pending = Occupancy { entries: 100, capacity: 100 };
        status.proxies_suspected.push(SuspectedProxy::sample("203.0.113.7"));
        let names = Names::new(false);
        let notes = health(Err("not attached: eth0".into()), &status, &names);
        let texts: Vec<&str> = notes.iter().map(|note| note.text.as_str()).collect();
        assert_eq!(texts[0], "not ready: not attached: eth0");
        assert_eq!(texts[1], "table flows is 81 % full");
        assert!(texts[2].ends_with("may be a proxy: its requests name 9 clients or more"));
        assert_eq!((texts.len(), texts[3]), (4, "3 events were lost since the guard was loaded"));
        assert!(!texts.concat().contains("203.0"), "{texts:?}");
        let well = health(Ok(()), &Status::default(), &names);
        assert_eq!((well.len(), well[0].level), (1, Level::Good));
    }
}
