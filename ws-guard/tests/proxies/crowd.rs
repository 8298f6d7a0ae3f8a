//! Indistinguishable clients: behind a carrier's NAT, or a silent proxy.
//!
//! Each connection has a separate share, so the crowd keeps its heartbeats although it sends far
//! more than one source may, and the flooder among it gets no more than its share.
use std::{iter::repeat_n, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    edge::Reach,
    netns::Family,
    pool::{self, Flood, Outcome, Plan},
    proxies::Front,
    servers::Library,
};

use crate::{
    row::{FULL, LATE, LIMIT, Part, SMALL, Size, guard_words},
    stage::{Flow, Role, Serving, Source, Stage},
};

/// Default of `--connection-share`.
const SHARE: usize = 5;
const PAUSE: Duration = Duration::from_millis(5);

/// The peer that the guard sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crowd {
    /// A trusted proxy that names no client.
    SilentProxy,
    /// The same proxy, where no proxy is trusted.
    UntrustedProxy,
}

impl Crowd {
    fn words(self) -> &'static str {
        match self {
            Crowd::SilentProxy => "",
            Crowd::UntrustedProxy => "--trusted-proxy none",
        }
    }
}

/// Check one flooder among `size` clients, all of one address to the guard.
fn crowd(crowd: Crowd, family: Family, role: Role, action: &str, size: Size) -> Result<()> {
    let words = guard_words(action, size.window_seconds, crowd.words());
    let serving = Serving::Library(Library::Gorilla);
    let stage = Stage::new(Front::Silent, serving, family, role, &words)?;
    let address = Reach::Public.client(family, 0);
    let plan = plan(&stage, address, size);
    let (outcome, (flows, sources)) = pool::run(&stage.edge.clients, &plan, |_| {
        Ok((stage.flows()?, stage.guard.ask::<Vec<Source>>("sources")?))
    })?;
    println!(
        "{crowd:?} {family:?} {role:?} {action}: {} of {} honest pings unanswered, \
         {} of {} of the flooder's answered",
        outcome.unanswered(),
        outcome.honest_pings(),
        outcome.flooders[0].answered.len(),
        outcome.flooders[0].pings,
    );
    judge(&outcome, size)?;
    counted(&outcome, &flows, &sources)?;
    stage.finish()
}

fn plan(stage: &Stage, address: IpAddr, size: Size) -> Plan {
    Plan {
        server: stage.front(),
        honest: repeat_n(address, size.honest.into()).collect(),
        every: size.every,
        pings: size.pings,
        flooders: vec![(address, Flood::Steady(PAUSE))],
    }
}

fn judge(outcome: &Outcome, size: Size) -> Result<()> {
    ensure!(outcome.unanswered() == 0, "{} honest pings unanswered", outcome.unanswered());
    ensure!(outcome.lost().is_empty(), "honest connections lost: {:?}", outcome.lost());
    let window = Duration::from_secs(size.window_seconds);
    let flooder = outcome.flooders.first().context("the flooder")?;
    let most = flooder.answered_within(window - LATE, Duration::ZERO);
    ensure!((1..=LIMIT.max(SHARE)).contains(&most), "{most} answers in less than {window:?}");
    // The honest clients alone fill the source's window by then.
    let most = flooder.answered_within(window - LATE, window);
    ensure!(most <= SHARE, "{most} answers in less than {window:?} once the window was full");
    Ok(())
}

/// Check that the source has all pings, and each flow those of one client.
fn counted(outcome: &Outcome, flows: &[Flow], sources: &[Source]) -> Result<()> {
    let clients = outcome.honest.len() + outcome.flooders.len();
    ensure!(flows.len() == clients, "{} flows of {clients} clients", flows.len());
    ensure!(flows.iter().all(|flow| flow.identity == "peer"), "{flows:?}");
    let [source] = sources else { anyhow::bail!("one source: {sources:?}") };
    ensure!(source.state == "throttled", "{source:?}");
    ensure!(source.connections == clients as u64, "{clients} connections: {source:?}");
    let honest = flows.iter().filter(|flow| flow.defused == 0);
    let mut pings: Vec<u64> = honest.map(|flow| flow.pings_in).collect();
    let mut sent: Vec<u64> = outcome.honest.iter().map(|seen| seen.pings).collect();
    pings.sort();
    sent.sort();
    ensure!(pings.len() >= sent.len(), "{} flows with nothing defused", pings.len());
    // Under `drop` none of the flooder's pings is defused either, and it sent the most.
    ensure!(pings[..sent.len()] == sent, "{pings:?} counted of {sent:?}");
    Ok(())
}

#[test]
fn five_hundred_behind_a_proxy_that_says_nothing() -> Result<()> {
    needs_root!();
    crowd(Crowd::SilentProxy, Family::V4, Role::Uplink, "defuse", FULL)
}

#[test]
fn behind_a_silent_proxy_under_drop() -> Result<()> {
    needs_root!();
    crowd(Crowd::SilentProxy, Family::V6, Role::Pod, "drop", SMALL)
}

#[test]
fn where_no_proxy_is_trusted() -> Result<()> {
    needs_root!();
    crowd(Crowd::UntrustedProxy, Family::V4, Role::Pod, "defuse", SMALL)
}

/// Five hundred clients, at every place, for both IP versions and actions.
#[test]
#[ignore = "takes ten minutes: `cargo xtask test --nightly`"]
fn every_combination() -> Result<()> {
    needs_root!();
    let mut combinations = Vec::new();
    for whom in [Crowd::SilentProxy, Crowd::UntrustedProxy] {
        for family in Family::BOTH {
            for role in Role::BOTH {
                combinations.extend(["defuse", "drop"].map(|action| (whom, family, role, action)));
            }
        }
    }
    for (whom, family, role, action) in Part::wanted()?.of(combinations) {
        crowd(whom, family, role, action, FULL)
            .with_context(|| format!("{whom:?} {family:?} {role:?} {action}"))?;
    }
    Ok(())
}
