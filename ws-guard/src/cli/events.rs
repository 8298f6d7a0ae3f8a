//! `ws-guard events`.

use clap::Args;

use super::{
    Global,
    backend::daemon,
    output::{Column, Format, Table, plural, print},
};
use crate::{control::client::Client, domain::event::EventView};

#[derive(Args)]
pub struct EventsCommand {
    /// Go on with events as they come, until interrupted
    #[arg(short, long, alias = "watch")]
    follow: bool,
    /// Only events with a higher number than this
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    since: u64,
    /// Form of the output; json is an array, with --follow a document a line
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

impl EventsCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let client = daemon(global).await?;
        let path = format!("/v1/events?since={}&follow={}", self.since, self.follow);
        if self.follow {
            self.follow(&client, &path).await
        } else {
            self.list(&client, &path).await
        }
    }

    async fn list(&self, client: &Client, path: &str) -> anyhow::Result<()> {
        let mut lines = client.lines(path).await?;
        let mut events: Vec<EventView> = Vec::new();
        while let Some(line) = lines.next().await? {
            events.push(serde_json::from_str(&line)?);
        }
        print(&match self.output {
            Format::Json => serde_json::to_string_pretty(&events)? + "\n",
            format => table(&events).render(format == Format::Wide),
        })
    }

    async fn follow(&self, client: &Client, path: &str) -> anyhow::Result<()> {
        let mut lines = client.lines(path).await?;
        while let Some(line) = lines.next().await? {
            if self.output == Format::Json {
                print(&(line + "\n"))?;
                continue;
            }
            let event: EventView = serde_json::from_str(&line)?;
            print(&format!("{}  {:<11}  {event}\n", event.time, event.kind))?;
        }
        // The daemon ended: say so in the exit code, or a script would take it for quiet.
        Err(crate::control::client::ClientError::Unreachable(client.socket().to_owned()).into())
    }
}

fn table(events: &[EventView]) -> Table {
    let row = |event: &EventView| {
        vec![
            event.time.to_string(),
            event.kind.to_string(),
            event.to_string(),
            event.seq.to_string(),
        ]
    };
    Table {
        columns: vec![
            Column::text("TIME"),
            Column::text("KIND"),
            Column::text("WHAT"),
            Column::number("SEQ").wide(),
        ],
        rows: events.iter().map(row).collect(),
        count: plural(events.len(), "event", "events"),
    }
}
