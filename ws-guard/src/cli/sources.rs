//! `ws-guard sources` and `ws-guard throttled`.

use clap::Args;

use super::{
    Global,
    backend::Backend,
    output::{Column, Format, Listing, Table, absolute, ago, ahead, plural, show},
};
use crate::domain::source::{SourceState, SourceView};

#[derive(Args)]
pub struct Sources {
    #[command(flatten)]
    listing: Listing,
    /// Only sources in this state: ok, throttled or allowed
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<SourceState>,
}

fn state(text: &str) -> Result<SourceState, String> {
    let states = [SourceState::Ok, SourceState::Throttled, SourceState::Allowed];
    states
        .into_iter()
        .find(|state| state.name() == text)
        .ok_or_else(|| "give ok, throttled or allowed".to_string())
}

impl Sources {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        list(&self.listing, self.state, global).await
    }
}

pub async fn throttled(listing: &Listing, global: &Global) -> anyhow::Result<()> {
    list(listing, Some(SourceState::Throttled), global).await
}

async fn list(
    listing: &Listing,
    state: Option<SourceState>,
    global: &Global,
) -> anyhow::Result<()> {
    if listing.output == Format::Json && !listing.watch {
        let backend = Backend::connect(global).await?;
        return backend.write_sources(state, &mut std::io::stdout().lock()).await;
    }
    let read = async || Backend::connect(global).await?.sources(state).await;
    show(listing, read, |views, wide| table(views).render(wide)).await
}

fn table(views: &[SourceView]) -> Table {
    let throttled = views.iter().filter(|view| view.state == SourceState::Throttled).count();
    Table {
        columns: vec![
            Column::text("SOURCE"),
            Column::text("STATE"),
            Column::number("IN-WINDOW"),
            Column::number("PINGS"),
            Column::number("DEFUSED"),
            Column::number("DROPPED"),
            Column::number("CONNECTIONS"),
            Column::number("LAST-PING"),
            Column::number("FREE-IN"),
            Column::number("PACED").wide(),
            Column::text("THROTTLED-SINCE").wide(),
            Column::text("THROTTLED-UNTIL").wide(),
            Column::text("BY").wide(),
            Column::text("PORT").wide(),
        ],
        rows: views.iter().map(row).collect(),
        count: format!("{}, {throttled} throttled", plural(views.len(), "source", "sources")),
    }
}

fn row(view: &SourceView) -> Vec<String> {
    let throttled = view.state == SourceState::Throttled;
    let by = match (view.manual, view.banned, view.escalated) {
        _ if !throttled => "-",
        (true, true, _) => "operator, banned",
        (true, false, _) => "operator",
        (false, true, _) => "pings, banned",
        (false, false, true) => "pings, dropped",
        (false, false, false) => "pings",
    };
    vec![
        view.source.clone(),
        view.state.name().into(),
        view.pings_in_window.to_string(),
        view.pings_total.to_string(),
        view.defused_total.to_string(),
        view.dropped_total.to_string(),
        view.connections.to_string(),
        ago(view.last_ping),
        if throttled && view.throttled_until.is_none() {
            "on release".into()
        } else {
            ahead(view.throttled_until)
        },
        view.paced.to_string(),
        absolute(view.throttled_since),
        absolute(view.throttled_until),
        by.into(),
        view.port.map_or("-".into(), |port| port.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::domain::clock::Timestamp;

    #[test]
    fn a_table_of_sources() {
        let now = SystemTime::now();
        let view = SourceView {
            source: "fd77::/64".into(),
            state: SourceState::Throttled,
            pings_in_window: 64,
            pings_total: 120_000,
            defused_total: 119_960,
            dropped_total: 0,
            last_ping: Some(Timestamp(now - Duration::from_millis(300))),
            throttled_since: Some(Timestamp(now - Duration::from_secs(60))),
            throttled_until: Some(Timestamp(now + Duration::from_millis(9_900))),
            manual: false,
            escalated: false,
            banned: false,
            connections: 3,
            paced: 0,
            port: None,
        };
        let calm = SourceView {
            source: "10.77.0.1".into(),
            state: SourceState::Ok,
            pings_in_window: 2,
            pings_total: 2,
            defused_total: 0,
            throttled_since: None,
            throttled_until: None,
            ..view.clone()
        };
        assert_eq!(
            table(&[view, calm]).render(false),
            "\
SOURCE     STATE      IN-WINDOW   PINGS  DEFUSED  DROPPED  CONNECTIONS  LAST-PING  FREE-IN
fd77::/64  throttled         64  120000   119960        0            3         0s       9s
10.77.0.1  ok                 2       2        0        0            3         0s        -
2 sources, 1 throttled
"
        );
    }
}
