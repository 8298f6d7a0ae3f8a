//! What holds behind every proxy: honest clients are served, flooders alone are limited.
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

/// How many clients, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub honest: u16,
    pub every: Duration,
    pub pings: u32,
    /// Of the guard.
    pub window_seconds: u64,
}

/// As the issue has it: 500 clients, a ping every 4 s, for 30 s.
pub const FULL: Size =
    Size { honest: 500, every: Duration::from_secs(4), pings: 8, window_seconds: 10 };
/// For every other row; as many pings a window as above.
pub const SMALL: Size =
    Size { honest: 60, every: Duration::from_millis(1500), pings: 6, window_seconds: 4 };

/// Pauses of the flooders that read what they get.
const STEADY: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(12)];
/// Where the proxies are. Named exactly, or those in front of others would hide private clients.
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
    /// Leave out everything that can be left out on the guard's command line.
    pub defaults: bool,
}

impl Row {
    /// The guard's words.
    fn guard_words(&self) -> String {
        if self.defaults {
            return String::new();
        }
        guard_words(self.action, self.size.window_seconds, PROXIES)
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

    /// Run it, and say how it went.
    pub fn run(self) -> Result<()> {
        let begun = Instant::now();
        let Row { front, serving, family, role, .. } = self;
        let mut stage = Stage::without_proxy(serving, family, role, &self.guard_words())?;
        if self.killed {
            stage.guard.kill()?;
        }
        stage.start_proxy(front)?;
        let plan = self.plan(&stage);
        let (outcome, looked) = pool::run(&stage.edge.clients, &plan, |outcome| {
            let throttled = stage.throttled()?;
            Ok((throttled, self.settled(&stage, outcome)?))
        })?;
        let (throttled, flows) = looked;
        println!(
            "{self:?}: {} of {} honest pings unanswered, {} connections lost, throttled {}, {:.1?}",
            outcome.unanswered(),
            outcome.honest_pings(),
            outcome.lost().len(),
            throttled.len(),
            begun.elapsed()
        );
        self.judge(&plan, &outcome, &throttled, &flows)?;
        stage.finish()
    }

    /// What `flows` says once it has counted all that honest clients sent: a daemon's counts may be
    /// a moment behind the answers.
    fn settled(&self, stage: &Stage, outcome: &Outcome) -> Result<BTreeMap<String, Flow>> {
        let flows = stage.flows()?;
        let mut named = BTreeMap::new();
        for flow in flows {
            let source = if today() { flow.client.clone() } else { flow.source.clone() };
            let other = named.insert(source, flow);
            ensure!(other.is_none(), "two connections have one source: {other:?}");
        }
        let clients = outcome.honest.len() + outcome.flooders.len();
        ensure!(named.len() == clients, "{} flows of {clients} clients", named.len());
        Ok(named)
    }

    fn judge(
        &self,
        plan: &Plan,
        outcome: &Outcome,
        throttled: &[String],
        flows: &BTreeMap<String, Flow>,
    ) -> Result<()> {
        ensure!(outcome.unanswered() == 0, "{} honest pings unanswered", outcome.unanswered());
        ensure!(outcome.lost().is_empty(), "honest connections lost: {:?}", outcome.lost());
        let mut flooders: Vec<String> =
            plan.flooders.iter().map(|(address, _)| source_name(*address)).collect();
        flooders.sort();
        ensure!(throttled == flooders, "throttled are {throttled:?}, not {flooders:?}");
        for seen in &outcome.honest {
            let flow = self.flow(flows, seen)?;
            let counted = (flow.frames_in, flow.pings_in, flow.pongs_out, flow.defused);
            let wanted = (seen.frames, seen.pings, seen.pings, 0);
            ensure!(counted == wanted, "{wanted:?} were sent: {flow:?}");
            ensure!(seen.unasked == 0 && flow.violations == 0, "{seen:?} {flow:?}");
        }
        let [blind, steady @ ..] = &outcome.flooders[..] else { return Ok(()) };
        let flow = self.flow(flows, blind)?;
        ensure!((1..=blind.pings).contains(&flow.pings_in), "{} sent: {flow:?}", blind.pings);
        steady.iter().try_for_each(|seen| self.judge_steady(seen, self.flow(flows, seen)?))
    }

    /// One that reads: it gets its limit, and each ping is counted, where none was dropped.
    fn judge_steady(&self, seen: &Seen, flow: &Flow) -> Result<()> {
        let window = Duration::from_secs(self.size.window_seconds);
        let most = seen.answered_within(window, Duration::ZERO);
        ensure!(most <= LIMIT, "{most} answers in {window:?}: {flow:?}");
        ensure!(!seen.answered.is_empty(), "the flooder's first pings are not answered: {flow:?}");
        let counted = (flow.frames_in, flow.pings_in);
        if self.action == "defuse" {
            ensure!(counted == (seen.frames, seen.pings), "{} pings sent: {flow:?}", seen.pings);
            let defused = seen.unanswered();
            ensure!(flow.defused == defused, "{defused} are unanswered: {flow:?}");
        } else {
            ensure!(counted.1 <= seen.pings, "{} pings sent: {flow:?}", seen.pings);
        }
        Ok(())
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

/// The default of `--max-ping-rate`.
pub const LIMIT: usize = 30;

/// How the guard names the source at an address: the address, or its /64.
pub fn source_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            format!("{}/64", std::net::Ipv6Addr::from(u128::from(address) >> 64 << 64))
        }
    }
}

/// Words for the guard, `more` of them.
pub fn guard_words(action: &str, window_seconds: u64, more: &str) -> String {
    let more = if today() { "" } else { more };
    format!("--action {action} --window-seconds {window_seconds} {more}")
}

/// Whether the guard has no flags about proxies yet.
pub fn today() -> bool {
    std::env::var_os("TODAY").is_some()
}
