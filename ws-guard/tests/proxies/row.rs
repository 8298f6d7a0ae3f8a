//! Rules behind every proxy: honest clients are served, flooders alone are limited.
use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ws_guard_testkit::{
    edge::Reach,
    netns::Family,
    pool::{self, Flood, Outcome, Plan, Seen},
    proxies::Front,
};

use crate::stage::{Flow, Role, Serving, Stage};

/// Number of clients, and duration.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub honest: u16,
    pub every: Duration,
    pub pings: u32,
    /// Window of the guard.
    pub window_seconds: u64,
}

/// Full size: 500 clients, a ping every 4 s, for 30 s.
pub const FULL: Size =
    Size { honest: 500, every: Duration::from_secs(4), pings: 8, window_seconds: 10 };
/// Size of every other row; as many pings a window as above.
pub const SMALL: Size =
    Size { honest: 60, every: Duration::from_millis(1500), pings: 6, window_seconds: 4 };

/// Pauses of the flooders that read their answers.
const STEADY: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(12)];
/// Time limit for the proxies to forward a flooder's frames.
const HANDED_ON: Duration = Duration::from_secs(10);
/// Networks of the proxies.
/// Named exactly, or those in front of others would hide private clients.
const PROXIES: &str = "--trusted-proxy 10.77.0.0/16 --trusted-proxy fd77::/32";

/// One combination.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub front: Front,
    pub serving: Serving,
    pub family: Family,
    pub reach: Reach,
    pub role: Role,
    pub action: &'static str,
    pub size: Size,
    /// Kill the daemon before the proxy starts.
    pub killed: bool,
    /// Omit every optional argument from the guard's command line.
    pub defaults: bool,
}

impl Row {
    /// Return the guard's arguments.
    fn guard_words(&self) -> String {
        if self.defaults {
            return String::new();
        }
        // Without a daemon the pace cannot be switched off after the flood.
        let pace = if self.killed { "--pace 64MiB/s" } else { "" };
        guard_words(self.action, self.size.window_seconds, &format!("{PROXIES} {pace}"))
    }

    fn plan(&self, stage: &Stage) -> Plan {
        let Size { honest, every, pings, .. } = self.size;
        let address = |n| self.reach.client(self.family, n);
        let floods = [Flood::Blind, Flood::Steady(STEADY[0]), Flood::Steady(STEADY[1])];
        Plan {
            server: stage.front(),
            honest: (0..honest).map(address).collect(),
            every,
            pings,
            flooders: (honest..).map(address).zip(floods).collect(),
        }
    }

    /// Run it, and report the result.
    pub fn run(self) -> Result<()> {
        let begun = Instant::now();
        let Row { front, serving, family, role, .. } = self;
        let mut stage = Stage::without_proxy(serving, family, role, &self.guard_words())?;
        if self.killed {
            stage.guard.kill()?;
        }
        stage.start_proxy(front)?;
        let plan = self.plan(&stage);
        let (outcome, (limited, flows)) = pool::run(&stage.edge.clients, &plan, |outcome| {
            Ok((stage.limited()?, self.flows(&stage, outcome)?))
        })?;
        println!(
            "{self:?}: {} of {} honest pings unanswered, {} connections lost, limited {}, {:.1?}",
            outcome.unanswered(),
            outcome.honest_pings(),
            outcome.lost().len(),
            limited.len(),
            begun.elapsed()
        );
        self.judge(&plan, &outcome, &limited, &flows)?;
        stage.finish()
    }

    /// Return the rows of `flows` by source, after all of the floods was forwarded.
    /// Under `drop` the proxies never forward all; at the pace they would for minutes.
    fn flows(&self, stage: &Stage, outcome: &Outcome) -> Result<BTreeMap<String, Flow>> {
        if self.action == "defuse" && !self.killed {
            stage.guard.run("policy set --pace off")?;
        }
        let deadline = Instant::now() + HANDED_ON;
        loop {
            let flows = named(stage.flows()?)?;
            let counted = outcome.flooders.iter().all(|seen| {
                let flow = flows.get(&source_name(seen.local.ip()));
                flow.is_some_and(|flow| flow.pings_in >= seen.pings)
            });
            if counted || self.action != "defuse" || Instant::now() > deadline {
                return Ok(flows);
            }
        }
    }

    fn judge(
        &self,
        plan: &Plan,
        outcome: &Outcome,
        limited: &[String],
        flows: &BTreeMap<String, Flow>,
    ) -> Result<()> {
        ensure!(outcome.unanswered() == 0, "{} honest pings unanswered", outcome.unanswered());
        ensure!(outcome.lost().is_empty(), "honest connections lost: {:?}", outcome.lost());
        let mut flooders: Vec<String> =
            plan.flooders.iter().map(|(address, _)| source_name(*address)).collect();
        flooders.sort();
        ensure!(limited == flooders, "limited are {limited:?}, not {flooders:?}");
        let clients = outcome.honest.len() + outcome.flooders.len();
        ensure!(flows.len() == clients, "{} flows of {clients} clients", flows.len());
        for seen in &outcome.honest {
            let flow = self.flow(flows, seen)?;
            let counted = (flow.frames_in, flow.pings_in, flow.pongs_out, flow.defused);
            let wanted = (seen.frames, seen.pings, seen.pings, 0);
            ensure!(counted == wanted, "{wanted:?} were sent: {flow:?}");
            let echoed = seen.echoes == seen.texts && seen.unasked == 0;
            ensure!(echoed && flow.violations == 0, "{seen:?} {flow:?}");
        }
        let [blind, steady @ ..] = &outcome.flooders[..] else { return Ok(()) };
        let flow = self.flow(flows, blind)?;
        self.judge_count(blind, flow)?;
        steady.iter().try_for_each(|seen| self.judge_steady(seen, self.flow(flows, seen)?))
    }

    /// Check that each ping of a flooder is counted, where none is dropped.
    fn judge_count(&self, seen: &Seen, flow: &Flow) -> Result<()> {
        let (sent, counted) = (seen.pings, (flow.frames_in, flow.pings_in));
        let right = if self.action == "defuse" {
            counted == (sent, sent)
        } else {
            (1..=sent).contains(&counted.0) && counted.0 == counted.1
        };
        ensure!(right, "{sent} pings sent: {flow:?}");
        Ok(())
    }

    /// Check that a flooder that reads gets its limit.
    fn judge_steady(&self, seen: &Seen, flow: &Flow) -> Result<()> {
        let window = Duration::from_secs(self.size.window_seconds);
        let most = seen.answered_within(window - LATE, Duration::ZERO);
        ensure!(most <= LIMIT, "{most} answers in less than {window:?}: {flow:?}");
        ensure!(!seen.answered.is_empty(), "the flooder's first pings are not answered: {flow:?}");
        if self.action == "defuse" {
            let defused = seen.unanswered();
            ensure!(flow.defused == defused, "{defused} are unanswered: {flow:?}");
        }
        self.judge_count(seen, flow)
    }

    fn flow<'a>(&self, flows: &'a BTreeMap<String, Flow>, seen: &Seen) -> Result<&'a Flow> {
        let name = source_name(seen.local.ip());
        let flow = flows.get(&name).with_context(|| format!("no flow of {name}: {flows:?}"))?;
        let protocol = Front::WITH_PROXY_PROTOCOL.contains(&self.front);
        let wanted = if protocol { "proxy-protocol" } else { "forwarded" };
        ensure!(flow.identity == wanted && flow.state == "open", "{flow:?}");
        Ok(flow)
    }
}

/// Return flows by their sources: each client's connection has a separate one.
fn named(flows: Vec<Flow>) -> Result<BTreeMap<String, Flow>> {
    let mut named = BTreeMap::new();
    for flow in flows {
        let other = named.insert(flow.source.clone(), flow);
        ensure!(other.is_none(), "two connections have one source: {other:?}");
    }
    Ok(named)
}

/// Default of `--max-ping-rate`.
pub const LIMIT: usize = 30;
/// Delay of some answers on a busy machine: the guard counts the pings.
pub const LATE: Duration = Duration::from_millis(500);

/// Return the guard's name for the source at an address: the address, or its /64.
pub fn source_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            format!("{}/64", std::net::Ipv6Addr::from(u128::from(address) >> 64 << 64))
        }
    }
}

/// Return arguments for the guard, including `more`.
pub fn guard_words(action: &str, window_seconds: u64, more: &str) -> String {
    format!("--action {action} --window-seconds {window_seconds} {more}")
}

/// Selection of combinations to run: each `of`th, from number `first` on.
pub struct Part {
    first: usize,
    of: usize,
}

impl Part {
    /// Parse `WS_GUARD_PART=FIRST/OF`, for parallel runs; all without it.
    pub fn wanted() -> Result<Part> {
        let Ok(words) = std::env::var("WS_GUARD_PART") else {
            return Ok(Part { first: 0, of: 1 });
        };
        let (first, of) = words.split_once('/').context("WS_GUARD_PART is FIRST/OF, as in 0/3")?;
        let part = Part { first: first.parse()?, of: of.parse()? };
        ensure!(
            part.first < part.of,
            "{words}: the first part is 0, the last one below {}",
            part.of
        );
        Ok(part)
    }

    pub fn of<T>(&self, all: Vec<T>) -> Vec<T> {
        all.into_iter().skip(self.first).step_by(self.of).collect()
    }
}
