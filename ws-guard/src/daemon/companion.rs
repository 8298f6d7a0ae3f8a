//! Services of the daemon for the companion server's process.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use ipnet::IpNet;
use ws_guard_server::seen;

use crate::{
    companion::{
        message::{Following, Limits, Start},
        supervisor::Daemon,
    },
    config::LogFormat,
    domain::event::EventView,
    operator::reports,
    state::State,
};

// All that the server collects fits into one batch.
const _: () = assert!(seen::MOST <= reports::MOST);

/// Kind of events about the server.
const EVENT: &str = "server";

/// Daemon with a companion server on `listen`.
pub struct Companion {
    pub state: State,
    pub listen: SocketAddr,
}

impl Companion {
    pub fn daemon(state: State, listen: SocketAddr) -> Arc<dyn Daemon> {
        Arc::new(Companion { state, listen })
    }
}

impl Daemon for Companion {
    fn start(&self) -> anyhow::Result<Start> {
        let Following { limits, section } = self.following()?;
        let settings = self.state.config().settings.clone();
        Ok(Start {
            listen: self.listen,
            proxies: settings.told_proxies(),
            access_log: settings.run.access_log,
            otlp_endpoint: settings.run.otlp_endpoint.map(|endpoint| endpoint.to_string()),
            json_log: settings.run.log_format == LogFormat::Json,
            section,
            limits,
        })
    }

    fn following(&self) -> anyhow::Result<Following> {
        let read = self.state.reader.policy_and_exempt();
        let (policy, exempt) = read.context("the policy cannot be read")?;
        let section = self.state.config().settings.server.clone();
        Ok(Following { limits: Limits { policy, exempt }, section })
    }

    fn charge(&self, pings: Vec<(IpNet, u32)>) -> anyhow::Result<()> {
        let charged = self.state.operator.report_pings(pings, self.listen.port());
        charged.map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn tell(&self, message: String) {
        self.state.events.record(EventView::message(EVENT, message));
    }
}
