//! Debian's nginx and HAProxy, as processes in namespaces.
//!
//! [`Front`] is what clients connect to: one proxy, or a chain of two. They differ in how the
//! server learns its client's address. [`nginx`] and [`haproxy`] write the configurations.
pub mod haproxy;
pub mod nginx;

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    netns::{Family, Namespace},
    process::Process,
    tools,
};

/// Maximum time for a proxy to listen.
const START: Duration = Duration::from_secs(20);

/// Proxy, or a chain of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// nginx that appends to `X-Forwarded-For`.
    Nginx,
    /// nginx that appends to `Forwarded`, as in its manual.
    NginxForwarded,
    /// HAProxy with `option forwardfor`.
    Haproxy,
    /// HAProxy with `send-proxy`: PROXY protocol version 1.
    ProxyV1,
    /// HAProxy with `send-proxy-v2`.
    ProxyV2,
    /// nginx with `X-Forwarded-For`, and behind it HAProxy, which appends to that.
    NginxHaproxy,
    /// HAProxy with `send-proxy`, and behind it nginx, which turns that into `X-Forwarded-For`.
    HaproxyNginx,
    /// HAProxy that passes no information about its clients.
    Silent,
}

impl Front {
    /// Proxies behind which a server needs only HTTP.
    pub const WITH_HEADERS: [Front; 5] = [
        Front::Nginx,
        Front::NginxForwarded,
        Front::Haproxy,
        Front::NginxHaproxy,
        Front::HaproxyNginx,
    ];
    /// Proxies that use the PROXY protocol with the server.
    pub const WITH_PROXY_PROTOCOL: [Front; 2] = [Front::ProxyV1, Front::ProxyV2];

    /// Start it in `namespace`, listening at `at`, in front of `server`.
    /// The server's neighbour comes first. The second proxy of a chain listens at the proxy's
    /// second address, one port higher.
    pub fn start(
        self,
        namespace: &Namespace,
        at: SocketAddr,
        server: SocketAddr,
    ) -> Result<Vec<Proxy>> {
        let family = if at.is_ipv4() { Family::V4 } else { Family::V6 };
        let inner = SocketAddr::new(family.client(1), at.port() + 1);
        let nginx = |config: String| Proxy::nginx(namespace, &config);
        let haproxy = |config: String| Proxy::haproxy(namespace, &config);
        Ok(match self {
            Front::Nginx => vec![nginx(nginx::appending(at, server))?],
            Front::NginxForwarded => vec![nginx(nginx::forwarded(at, server))?],
            Front::Haproxy => vec![haproxy(haproxy::appending(at, server))?],
            Front::ProxyV1 => vec![haproxy(haproxy::stream(at, server, "send-proxy"))?],
            Front::ProxyV2 => vec![haproxy(haproxy::stream(at, server, "send-proxy-v2"))?],
            Front::Silent => vec![haproxy(haproxy::stream(at, server, ""))?],
            Front::NginxHaproxy => vec![
                haproxy(haproxy::appending(inner, server))?,
                nginx(nginx::appending(at, inner))?,
            ],
            Front::HaproxyNginx => vec![
                nginx(nginx::behind_proxy_protocol(inner, server))?,
                haproxy(haproxy::stream(at, inner, "send-proxy"))?,
            ],
        })
    }
}

/// Running proxy, ended when dropped.
pub struct Proxy {
    process: Process,
    _folder: TempDir,
}

impl Proxy {
    /// Start nginx and wait until it listens.
    pub fn nginx(namespace: &Namespace, config: &str) -> Result<Proxy> {
        let proxy = Proxy::start("nginx", config, |folder, file| {
            let mut command = namespace.command(tools::nginx());
            command.arg("-p").arg(folder).arg("-c").arg(file).args(["-e", "stderr"]);
            command
        })?;
        // It logs its limit of descriptors once its sockets listen.
        proxy.process.wait_for(START, |line| line.contains("getrlimit").then_some(()))?;
        Ok(proxy)
    }

    /// Start HAProxy and wait until it listens.
    pub fn haproxy(namespace: &Namespace, config: &str) -> Result<Proxy> {
        let proxy = Proxy::start("haproxy", config, |_, file| {
            let mut command = namespace.command(tools::haproxy());
            // With a master, because only that logs when everything is ready.
            command.args(["-W", "-f"]).arg(file);
            command
        })?;
        proxy.process.wait_for(START, |line| line.contains("Loading success").then_some(()))?;
        Ok(proxy)
    }

    fn start(
        name: &str,
        config: &str,
        command: impl FnOnce(&Path, &Path) -> Command,
    ) -> Result<Proxy> {
        let folder = TempDir::with_prefix(format!("wsg-{name}-"))?;
        let file = folder.path().join("config");
        fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
        let process = Process::spawn(name, command(folder.path(), &file))
            .with_context(|| format!("`cargo xtask setup` installs {name}"))?;
        Ok(Proxy { process, _folder: folder })
    }

    /// End it, and check that it had not ended before.
    pub fn stop(mut self) -> Result<()> {
        let early = self.process.ended()?;
        ensure!(early.is_none(), "a proxy ended early ({early:?}):\n{}", self.log());
        self.process.terminate().map(drop)
    }

    /// Wait until its output has this text.
    pub fn wait_for(&self, patience: Duration, text: &str) -> Result<()> {
        self.process.wait_for(patience, |line| line.contains(text).then_some(()))
    }

    /// Return its output so far.
    pub fn log(&self) -> String {
        self.process.lines().join("\n")
    }
}
