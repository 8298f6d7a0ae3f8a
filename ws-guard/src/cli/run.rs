//! `ws-guard run`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Command};
use tracing::subscriber::{NoSubscriber, with_default};

use super::{Global, blame::variables, serve::ServerFlags, settings::RunFlags};
use ws_guard_server::{self as server, watch::Watch};

use crate::{
    companion::process,
    config::{Inputs, LogFormat},
    daemon::{self, RunOptions},
    listener::descriptors,
    log::log_to_stderr,
};

const HELP: &str = "\
Precedence: flags, WS_GUARD_* variables, MAX_PING_RATE and WINDOW_SECONDS, the file, defaults.
Everything is checked before anything is attached, and every error is listed.

The file is TOML; its keys are the flags without their dashes:
  interface = [\"eth0\", \"eth1\"]
  port = 8080
  max-ping-rate = 60
  action = \"defuse\"
Its section `server` is the companion server's, see `ws-guard serve --help`.
It is read again when it changes (a ConfigMap's symlink swap included) and on SIGHUP. A file with
an error leaves the old policy in force.

Examples:
  ws-guard run --interface eth0 --port 8080
  ws-guard run --pod-interface 'cali*' --port 8080
  ws-guard run --interface eth0,eth1 --port 80,443 --action observe --metrics-listen :9464
  ws-guard run --interface eth0 --port 8443 --action drop --listen :8443 \\
    --tls-certificate chain.pem --tls-key key.pem
  MAX_PING_RATE=60 WINDOW_SECONDS=30 ws-guard run --config /etc/ws-guard.toml

SIGTERM and SIGINT end the daemon and leave protection in force; `ws-guard unload` ends that.
Exit codes: 0 ended by a signal, 1 failed, 2 usage, 64 bad configuration, 77 privileges missing,
78 pinned maps do not fit.";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct Run {
    #[command(flatten)]
    flags: RunFlags,
    /// TOML file with any of these settings, watched for changes
    #[arg(long, value_name = "FILE", env = "WS_GUARD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    server: ServerFlags,
    /// This is the process of the companion server, which a daemon started
    #[arg(long, hide = true)]
    companion: bool,
}

impl Run {
    pub fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        if self.companion {
            return self.companion();
        }
        let watch = self.config.clone().map(Watch::new);
        let inputs = Inputs::new(self.flags.0, self.config);
        let settings = inputs.load()?;
        // The kernel programs log through the `log` crate, at debug level.
        let level = if settings.run.kernel_debug { "debug" } else { "info" };
        log_to_stderr(settings.run.log_format, level);
        let server = settings.run.listen.map(|listen| {
            let mut config = server::Config::new(listen);
            let trusted = settings.told_proxies();
            // Messages about it come from the companion server's process.
            let apply = || self.server.apply(&mut config, &settings.server, &trusted);
            with_default(NoSubscriber::default(), apply).map(|()| config)
        });
        let server = server.transpose()?;
        descriptors::raise(descriptors::RESERVED);
        let idle = !settings.server.protocols.rows.is_empty() || self.server.want_a_server();
        if server.is_none() && idle {
            tracing::warn!("settings of the companion server without --listen: add it");
        }
        for variable in inputs.unknown_variables(&server_variables()) {
            tracing::warn!("{variable}: unknown setting, ignored");
        }
        let options = RunOptions {
            settings,
            server,
            inputs,
            watch,
            control_socket: global.control_socket.clone(),
            pin_dir: global.pin_dir.clone(),
        };
        daemon::memory::keep_little();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let ran = runtime.block_on(daemon::run(options));
        // A listing that is still being read must not delay the end.
        runtime.shutdown_background();
        ran.map(|()| ExitCode::SUCCESS)
    }

    /// Serve as configured by the daemon that started this process.
    fn companion(self) -> anyhow::Result<ExitCode> {
        let (socket, start) = process::begin()?;
        let format = if start.json_log { LogFormat::Json } else { LogFormat::Text };
        log_to_stderr(format, "info");
        let mut config = server::Config::new(start.listen);
        self.server.apply(&mut config, &start.section, &start.proxies)?;
        descriptors::back(&mut config);
        process::serve(config, &start, socket).map(|()| ExitCode::SUCCESS)
    }
}

/// Return the variables of the flags that the companion server shares with `serve`.
fn server_variables() -> Vec<String> {
    variables(&ServerFlags::augment_args(Command::new("server")))
}
