//! `ws-guard events`.

use std::time::Duration;

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use ipnet::IpNet;

use super::{
    Global,
    backend::daemon,
    output::{Column, Table, plural, print},
};
use crate::{
    api::{client::ClientError, events::EventQuery},
    domain::{
        event::EventView,
        event_filter::{kinds, network},
    },
};

const HELP: &str = "\
The daemon keeps the latest 1,000 events. Each throttle says why: limit, window, what was counted,
what is done, and how many connections share the source.

Examples:
  ws-guard events -f                                       what was, and what comes
  ws-guard events --since 10m --kind throttled --kind banned
  ws-guard events -f --source 203.0.113.0/24 -o json       a line of JSON an event
  ws-guard events -f --since 4711                          go on after the event of that number

Exit codes: 0 done, 69 no daemon, or it ended while events were followed.";

/// Form of the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// What fits a terminal
    #[default]
    Table,
    /// All columns
    Wide,
    /// For scripts: a line of JSON an event
    Json,
}

#[derive(Args)]
#[command(after_help = HELP)]
pub struct EventsCommand {
    /// Go on with events as they come, until interrupted
    #[arg(short, long, alias = "watch")]
    follow: bool,
    /// Only events of the last 10m, 90s or 2h; a number without a unit is that of an event, and
    /// asks for those after it
    #[arg(long, value_name = "DURATION", value_parser = since)]
    since: Option<Since>,
    /// Only events about the sources in this network, or the source of this address; repeatable
    #[arg(long = "source", value_name = "NET", value_parser = network)]
    sources: Vec<IpNet>,
    /// Only events of this kind; repeatable
    #[arg(long = "kind", value_name = "KIND", value_parser = PossibleValuesParser::new(kinds()))]
    kinds: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Form,
}

/// Start of the listing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Since {
    /// Time span that ends now.
    Span(Duration),
    /// After the event with this number.
    Number(u64),
}

/// Parse a start: time spans always have a unit, numbers never do.
fn since(text: &str) -> Result<Since, String> {
    if let Ok(number) = text.parse() {
        return Ok(Since::Number(number));
    }
    let span = humantime::parse_duration(text);
    span.map(Since::Span).map_err(|error| {
        format!("{error}; write a span of time as 90s, 10m or 2h, or the number of an event")
    })
}

impl EventsCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let client = daemon(global).await?;
        let mut lines = client.lines(&self.query().path()).await?;
        let mut listed = Vec::new();
        while let Some(line) = lines.next().await? {
            if self.output == Form::Json {
                print(&(line + "\n"))?;
                continue;
            }
            let event: EventView = serde_json::from_str(&line)?;
            if self.follow {
                print(&format!("{}  {:<11}  {event}\n", event.time, event.kind))?;
            } else {
                listed.push(event);
            }
        }
        if self.follow {
            // The daemon ended: without an exit code, a script would take that for no events.
            return Err(ClientError::Unreachable(client.socket().to_owned()).into());
        }
        match self.output {
            Form::Json => Ok(()),
            form => print(&table(&listed).render(form == Form::Wide)),
        }
    }

    fn query(&self) -> EventQuery {
        let query = EventQuery { follow: self.follow, ..EventQuery::default() };
        let query = match self.since {
            None => query,
            Some(Since::Number(since)) => EventQuery { since, ..query },
            Some(Since::Span(span)) => {
                EventQuery { within_seconds: Some(span.as_secs_f64()), ..query }
            }
        };
        let kinds: Vec<&str> = self.kinds.iter().map(String::as_str).collect();
        query.only(&self.sources, &kinds)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_tells_a_span_from_the_number_of_an_event() {
        assert_eq!(since("10m"), Ok(Since::Span(Duration::from_secs(600))));
        assert_eq!(since("4711"), Ok(Since::Number(4711)));
        for wrong in ["soon", "-1", "10x", ""] {
            assert!(since(wrong).unwrap_err().contains("10m"), "{wrong}");
        }
    }
}
