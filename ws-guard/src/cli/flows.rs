//! `ws-guard flows`.

use std::{net::SocketAddr, time::Duration};

use super::{
    Global,
    backend::Backend,
    output::{Column, Listing, Table, ago, plural, show, span},
};
use crate::domain::flow::FlowView;

pub async fn run(listing: &Listing, global: &Global) -> anyhow::Result<()> {
    let read = async || Backend::connect(global).await?.flows().await;
    show(listing, read, |views, wide| table(views).render(wide)).await
}

fn table(views: &[FlowView]) -> Table {
    let unsynced = views.iter().filter(|view| view.state == "unsynced").count();
    Table {
        columns: vec![
            Column::text("CLIENT"),
            Column::text("SERVER"),
            Column::text("STATE"),
            Column::number("FRAMES"),
            Column::number("PINGS"),
            Column::number("PONGS-OUT"),
            Column::number("DEFUSED"),
            Column::number("VIOLATIONS"),
            Column::number("RTT"),
            Column::number("IDLE"),
            Column::number("COALESCED").wide(),
            Column::number("SPLIT-HEADERS").wide(),
            Column::number("SPLIT-FRAMES").wide(),
            Column::number("GAPS").wide(),
            Column::number("UNSYNCED").wide(),
            Column::number("FRAMES-OUT").wide(),
            Column::number("AGE").wide(),
            Column::number("DROPPED").wide(),
            Column::text("OVER").wide(),
            Column::text("PACED").wide(),
            Column::text("PEER").wide(),
            Column::text("SOURCE").wide(),
            Column::text("IDENTITY").wide(),
        ],
        rows: views.iter().map(row).collect(),
        count: format!("{}, {unsynced} unsynced", plural(views.len(), "flow", "flows")),
    }
}

/// Show whether the window is held, and the permitted rate.
fn pace(view: &FlowView) -> String {
    match view.paced_bytes_per_second {
        Some(rate) => format!("{rate} B/s"),
        None => if view.paced { "yes" } else { "-" }.into(),
    }
}

/// Return the address of an end point.
fn peer(client: &str) -> String {
    client.parse().map_or("-".into(), |end: SocketAddr| end.ip().to_string())
}

fn row(view: &FlowView) -> Vec<String> {
    let rtt = |us: u32| format!("{:.1}ms", f64::from(us) / 1000.0);
    vec![
        view.client.clone(),
        view.server.clone(),
        view.state.to_string(),
        view.frames_in.to_string(),
        view.pings_in.to_string(),
        view.pongs_out.to_string(),
        view.defused.to_string(),
        view.violations.to_string(),
        view.heartbeat_rtt_us.map_or("-".into(), rtt),
        view.idle_ms.map_or("-".into(), |ms| span(Duration::from_millis(ms))),
        view.coalesced_segments.to_string(),
        view.split_headers.to_string(),
        view.split_frames.to_string(),
        view.gaps.to_string(),
        view.unsynced_total.to_string(),
        view.frames_out.to_string(),
        ago(view.opened),
        view.dropped.to_string(),
        if view.over_limit { "yes" } else { "-" }.into(),
        pace(view),
        peer(&view.client),
        view.source.clone().unwrap_or("-".into()),
        view.identity.as_deref().unwrap_or("-").into(),
    ]
}

#[cfg(test)]
mod tests {
    use ws_guard_common::{flow::state, maps::FlowKey};

    use super::*;

    #[test]
    fn a_table_of_flows() {
        let key =
            FlowKey::new("10.77.0.1:4711".parse().unwrap(), "10.77.0.2:9001".parse().unwrap());
        let view = FlowView {
            state: "open".into(),
            frames_in: 7,
            heartbeat_rtt_us: Some(1_250),
            idle_ms: Some(3_000),
            ..FlowView::without_flow(&key, state::HANDSHAKE)
        };
        assert_eq!(
            table(&[view]).render(false),
            "\
CLIENT          SERVER          STATE  FRAMES  PINGS  PONGS-OUT  DEFUSED  VIOLATIONS    RTT  IDLE
10.77.0.1:4711  10.77.0.2:9001  open        7      0          0        0           0  1.2ms    3s
1 flow, 0 unsynced
"
        );
    }
}
