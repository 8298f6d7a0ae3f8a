//! Reload of a changed configuration while packets flow.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use ws_guard_server::watch::{Watch, changed};

use crate::{
    config::{
        Inputs, Settings,
        reloadable::{ReloadError, Reloadable},
    },
    domain::{clock::Timestamp, event::EventView},
    guard::Selection,
    operator::error::ApiError,
    state::State,
};

/// Cause of a reload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Changed file: apply its changes; keep settings changed by `policy set` alone.
    File,
    /// SIGHUP: apply the configuration as it is, overriding what `policy set` changed.
    Signal,
}

/// Reload on SIGHUP and when the file changes.
pub struct Reloader {
    state: State,
    inputs: Inputs,
    watch: Option<Watch>,
    hangup: Signal,
    /// Channel for a new list of interfaces.
    interfaces: watch::Sender<Selection>,
    /// Check of the companion server's section; its process follows the settings.
    server: Option<Reloadable>,
    /// Settings at the start of the daemon.
    started: Settings,
}

impl Reloader {
    /// Create a reloader.
    /// `watch` must precede the first reading of the file, or a change between the two would be
    /// missed.
    pub fn new(
        state: State,
        inputs: Inputs,
        watch: Option<Watch>,
        interfaces: watch::Sender<Selection>,
    ) -> anyhow::Result<Reloader> {
        let started = state.config().settings.clone();
        let hangup = signal(SignalKind::hangup())?;
        let server = None;
        Ok(Reloader { state, inputs, watch, hangup, interfaces, server, started })
    }

    /// Also check the companion server's section.
    pub fn serving(self, server: Option<Reloadable>) -> Reloader {
        Reloader { server, ..self }
    }

    /// Reload until dropped.
    pub async fn run(mut self) {
        loop {
            let cause = tokio::select! {
                Some(()) = self.hangup.recv() => Cause::Signal,
                () = changed(&mut self.watch) => Cause::File,
            };
            self.reload(cause);
        }
    }

    fn reload(&self, cause: Cause) {
        let loaded = self.inputs.load().map_err(|error| error.lines());
        let checked = loaded.and_then(|settings| match self.check(&settings) {
            Ok(()) => Ok(settings),
            Err(error) => Err(vec![error.to_string()]),
        });
        let applied = checked.and_then(|settings| {
            self.apply(cause, settings).map_err(|error| vec![error.to_string()])
        });
        self.state.count_reload(applied.is_ok());
        if let Err(errors) = applied {
            let message = format!("refused, the old one stays in force: {}", errors.join("; "));
            self.state.events.record(EventView::message("config_error", message));
            self.state.config().errors = Some(errors);
        }
    }

    /// Check for everything that can be refused before anything is changed.
    fn check(&self, new: &Settings) -> Result<(), ReloadError> {
        self.server.as_ref().map_or(Ok(()), |server| server.check(&new.server))
    }

    fn apply(&self, cause: Cause, new: Settings) -> Result<(), ApiError> {
        let before = self.state.config().settings.clone();
        match cause {
            Cause::File => {
                self.state.operator.merge(&before, &new)?;
            }
            Cause::Signal => self.state.operator.configure(&new)?,
        }
        if new.run.interfaces != before.run.interfaces {
            // The receiver, the supervisor, ends only with the daemon.
            let _ = self.interfaces.send(new.run.interfaces.clone());
        }
        let waiting = self.started.run.restart_needed(&new.run);
        if !waiting.is_empty() {
            tracing::warn!("changed, but in force only after a restart: {}", waiting.join(", "));
        }
        let changes = before.policy.differences(&new.policy);
        let message = match changes.is_empty() {
            true => "reloaded, policy unchanged".to_string(),
            false => format!("reloaded: {}", changes.join(", ")),
        };
        self.state.events.record(EventView::message("config", message));
        let mut config = self.state.config();
        config.settings = new;
        config.loaded = Timestamp::now();
        config.errors = None;
        config.restart_needed = waiting;
        Ok(())
    }
}
