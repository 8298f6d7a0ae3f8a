//! `ws-guard connections` and `ws-guard connection`, of the companion server.

use std::time::{Duration, SystemTime};

use clap::Args;

use super::{
    Global, SERVE_SOCKET,
    output::{Column, Format, Listing, Table, ago, plural, print, printable, show, span},
};
use ws_guard_server::view::{ConnectionStory, ConnectionView, StoryEvent, TcpView};

use crate::api::client::{Client, ClientError};

const HELP: &str = "\
Connections of the companion server: of the daemon's (`run --listen`), or of `serve`. Those that ended
in the last minute are listed too.

States: idle (not pinged yet), handshaking (the first ping waits for its pong), active, suspect (a
pong is late), dead (three were), closing, closed.

Exit codes: 0 listed, 1 no companion server runs there, 69 no answer on the control socket.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Connections {
    #[command(flatten)]
    listing: Listing,
    /// Also those that ended longer ago, as far as they are remembered: the latest 1024
    #[arg(short, long)]
    all: bool,
}

impl Connections {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let path = format!("/v1/connections?all={}", self.all);
        let read = async || Ok(Companions::of(global).get(&path).await?);
        show(&self.listing, read, |views: &Vec<ConnectionView>, wide| table(views).render(wide))
            .await
    }
}

const STORY_HELP: &str = "\
Shows the connection's state and history. With --follow, what happens from now on,
its pings, pongs and messages included, until it ends.

Exit codes: 0 shown, or followed to its end; 1 no such connection; 69 no answer.";

#[derive(Args)]
#[command(after_help = STORY_HELP)]
pub struct Connection {
    /// Number of the connection, as `connections` shows it
    id: u64,
    /// Go on with events as they come, until the connection ends
    #[arg(short, long, alias = "watch")]
    follow: bool,
    /// Form of the output; json is one document, with --follow a document a line
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

impl Connection {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let companions = Companions::of(global);
        let path = format!("/v1/connections/{}", self.id);
        let story: ConnectionStory = companions.get(&path).await?;
        if self.output != Format::Json {
            print(&summary(&story.connection))?;
        }
        match (self.follow, self.output) {
            (true, _) => self.follow(&companions, &path).await,
            (false, Format::Json) => print(&(serde_json::to_string_pretty(&story)? + "\n")),
            (false, _) => print(&events(&story.story).render(self.output == Format::Wide)),
        }
    }

    async fn follow(&self, companions: &Companions, path: &str) -> anyhow::Result<()> {
        let path = format!("{path}/story?follow=true");
        let mut lines = companions.lines(&path).await?;
        let mut ended = false;
        while let Some(line) = lines.next().await? {
            let event: StoryEvent = serde_json::from_str(&line)?;
            ended = event.event == "closed";
            print(&match self.output {
                Format::Json => line + "\n",
                _ => format!("{}  {:<12}  {}\n", event.time, event.event, printable(&event.what)),
            })?;
        }
        anyhow::ensure!(ended, "the server ended before the connection did: see its log");
        Ok(())
    }
}

/// Sockets of a possible companion server, the likelier first.
struct Companions(Vec<Client>);

impl Companions {
    fn of(global: &Global) -> Companions {
        let mut clients = vec![Client::new(&global.control_socket)];
        if !global.control_socket_named {
            clients.push(Client::new(SERVE_SOCKET));
        }
        Companions(clients)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.first(async |client: &Client| client.get(path).await).await
    }

    async fn lines(&self, path: &str) -> Result<crate::api::client::Lines, ClientError> {
        self.first(async |client: &Client| client.lines(path).await).await
    }

    /// Return the first answer; without one, the first server's refusal.
    async fn first<T>(
        &self,
        ask: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut said = None;
        for client in &self.0 {
            match ask(client).await {
                Ok(answer) => return Ok(answer),
                Err(error @ ClientError::Unreachable(_)) => {
                    said.get_or_insert(error);
                }
                Err(error) if !matches!(said, Some(ClientError::Refused(_))) => said = Some(error),
                Err(_) => {}
            }
        }
        Err(said.unwrap_or(ClientError::Unreachable(SERVE_SOCKET.into())))
    }
}

fn table(views: &[ConnectionView]) -> Table {
    let count = |state: &str| views.iter().filter(|view| view.state == state).count();
    let (closed, suspect) = (count("closed"), count("suspect"));
    let open = plural(views.len() - closed, "connection", "connections");
    Table {
        columns: vec![
            Column::number("ID"),
            Column::text("CLIENT"),
            Column::text("USER"),
            Column::text("STATE"),
            Column::number("AGE"),
            Column::number("LAST-PONG"),
            Column::number("RTT"),
            Column::number("QUEUE"),
            Column::text("CAUSE"),
            Column::number("CODE").wide(),
            Column::text("PEER").wide(),
            Column::text("REGION").wide(),
            Column::number("HANDSHAKE").wide(),
            Column::number("MESSAGES-IN").wide(),
            Column::number("MESSAGES-OUT").wide(),
            Column::number("BYTES-IN").wide(),
            Column::number("BYTES-OUT").wide(),
            Column::number("PINGS").wide(),
            Column::number("IGNORED").wide(),
            Column::number("TCP-RTT").wide(),
            Column::number("RETRANSMITTED").wide(),
            Column::number("UNACKED").wide(),
            Column::text("TOPICS").wide(),
        ],
        rows: views.iter().map(row).collect(),
        count: format!("{open}, {suspect} suspect, {closed} closed"),
    }
}

fn row(view: &ConnectionView) -> Vec<String> {
    let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
    let tcp = |shown: &dyn Fn(&TcpView) -> String| view.tcp.as_ref().map_or("-".into(), shown);
    vec![
        view.id.to_string(),
        view.client.clone(),
        text(view.user_id.as_deref()),
        view.state.to_string(),
        age(view),
        ago(view.last_pong),
        view.heartbeat_rtt_ms.map_or("-".into(), milliseconds),
        view.message_queue_size.to_string(),
        text(view.cause.as_deref()),
        view.code.map_or("-".into(), |code| code.to_string()),
        view.peer.clone(),
        text(view.region.as_deref()),
        milliseconds(view.handshake_duration_ms),
        view.totals.messages_in.to_string(),
        view.totals.messages_out.to_string(),
        view.totals.bytes_in.to_string(),
        view.totals.bytes_out.to_string(),
        view.totals.pings_in.to_string(),
        view.totals.pings_ignored.to_string(),
        tcp(&|tcp| format!("{:.3}±{:.3}ms", tcp.rtt_ms, tcp.rtt_deviation_ms)),
        tcp(&|tcp| tcp.retransmitted.to_string()),
        tcp(&|tcp| tcp.unacknowledged.to_string()),
        view.topics.join(","),
    ]
}

/// Return the age of a connection, or its age at the end.
fn age(view: &ConnectionView) -> String {
    let end = view.closed.map_or_else(SystemTime::now, |closed| closed.0);
    span(end.duration_since(view.opened.0).unwrap_or(Duration::ZERO))
}

fn milliseconds(time: f64) -> String {
    format!("{time:.1}ms")
}

/// Show one connection, one field per line.
fn summary(view: &ConnectionView) -> String {
    let table = table(std::slice::from_ref(view));
    let fields = table.columns.iter().zip(row(view));
    let lines = fields.map(|(column, value)| {
        format!("{:<13} {}", column.title.to_lowercase(), printable(&value))
    });
    let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n\n"
}

fn events(story: &[StoryEvent]) -> Table {
    let row = |event: &StoryEvent| {
        vec![event.time.to_string(), event.event.to_string(), event.what.clone()]
    };
    Table {
        columns: vec![Column::text("TIME"), Column::text("EVENT"), Column::text("WHAT")],
        rows: story.iter().map(row).collect(),
        count: plural(story.len(), "event", "events"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Timestamp;
    use ws_guard_server::view::Totals;

    fn view() -> ConnectionView {
        let opened = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        ConnectionView {
            id: 7,
            peer: "127.0.0.1:4711".into(),
            client: "127.0.0.1".into(),
            user_id: Some("u-1".into()),
            region: None,
            state: "closed".into(),
            opened: Timestamp(opened),
            closed: Some(Timestamp(opened + Duration::from_secs(90))),
            cause: Some("silence".into()),
            code: Some(1006),
            handshake_duration_ms: 0.42,
            ping_interval_ms: 25_000,
            last_pong: None,
            heartbeat_rtt_ms: Some(1.25),
            message_queue_size: 6,
            totals: Totals {
                messages_in: 1,
                messages_out: 1,
                bytes_in: 11,
                bytes_out: 7,
                pings_in: 0,
                pings_ignored: 0,
            },
            tcp: Some(TcpView {
                rtt_ms: 0.25,
                rtt_deviation_ms: 0.125,
                retransmitted: 3,
                unacknowledged: 2,
            }),
            topics: vec!["a".into()],
        }
    }

    #[test]
    fn a_table_of_connections() {
        let live =
            ConnectionView { state: "suspect".into(), closed: None, cause: None, id: 8, ..view() };
        let text = table(&[live, view()]).render(false);
        assert!(text.starts_with("ID  CLIENT     USER  STATE    "), "{text}");
        let closed = " 7  127.0.0.1  u-1   closed   ";
        assert!(text.contains(closed) && text.contains("  1.2ms      6  silence\n"), "{text}");
        assert!(text.ends_with("\n1 connection, 1 suspect, 1 closed\n"), "{text}");
        assert_eq!(table(&[]).render(true), "0 connections, 0 suspect, 0 closed\n");
    }

    #[test]
    fn one_connection_is_a_line_a_field() {
        let text = summary(&view());
        assert!(text.starts_with("id            7\nclient        127.0.0.1\n"), "{text}");
        assert!(text.contains("\ncause         silence\ncode          1006\n"), "{text}");
        assert!(text.contains("\nregion        -\n") && text.ends_with("a\n\n"), "{text}");
        let tcp = "\ntcp-rtt       0.250±0.125ms\nretransmitted 3\nunacked       2\n";
        assert!(text.contains(tcp), "{text}");
    }
}
