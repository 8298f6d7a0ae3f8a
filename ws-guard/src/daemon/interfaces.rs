//! Keeps the programs attached to the wanted interfaces, which may be missing, go away and come
//! back.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::state::State;
use crate::{
    domain::event::EventView,
    guard::{AttachMode, Attachment, Guard, GuardError, InterfaceWatcher, Mode},
};

/// How often to look without being told: for attaches that failed, and the daemon's own figures.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long to wait after an attach that failed.
const RETRY: Duration = Duration::from_secs(5);

/// One wanted interface.
struct Wanted {
    name: String,
    /// Of the interface that is attached: another one under the same name has another.
    index: Option<u32>,
    /// Not before then, after a failure.
    retry: Option<Instant>,
    attachment: Attachment,
}

impl Wanted {
    fn new(name: &str) -> Wanted {
        let attachment = Attachment { name: name.to_string(), ingress: None, egress: None };
        Wanted { name: name.to_string(), index: None, retry: None, attachment }
    }
}

/// Owns the loaded programs.
pub struct Supervisor {
    guard: Guard,
    state: State,
    mode: AttachMode,
    wanted: Vec<Wanted>,
    watcher: InterfaceWatcher,
}

impl Supervisor {
    /// Attach to every interface that exists. One that refuses is an error now, at the start;
    /// later it is tried again and again.
    pub fn start(
        guard: Guard,
        state: State,
        mode: AttachMode,
        interfaces: &[String],
    ) -> Result<Supervisor, GuardError> {
        // Older than the first look, so that nothing falls between the two.
        let watcher = InterfaceWatcher::new()?;
        let wanted = interfaces.iter().map(|name| Wanted::new(name)).collect();
        let mut supervisor = Supervisor { guard, state, mode, wanted, watcher };
        for i in 0..supervisor.wanted.len() {
            match index_of(&supervisor.wanted[i].name) {
                Some(index) => supervisor.attach(i, index)?,
                None => tracing::warn!(
                    interface = supervisor.wanted[i].name,
                    "interface does not exist; it is attached to as soon as it does"
                ),
            }
        }
        supervisor.publish();
        Ok(supervisor)
    }

    /// Runs until it is dropped; `interfaces` brings the wanted ones anew when they change.
    pub async fn run(mut self, mut interfaces: watch::Receiver<Vec<String>>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                // Only wakes us: what there is, `look` sees itself.
                Ok(_) = self.watcher.next() => {}
                Ok(()) = interfaces.changed() => {
                    let wanted = interfaces.borrow_and_update().clone();
                    self.want(&wanted);
                }
            }
            self.look();
            self.state.set_events_dropped(self.guard.events_dropped());
        }
    }

    /// Compare what is with what should be.
    fn look(&mut self) {
        for i in 0..self.wanted.len() {
            let now = index_of(&self.wanted[i].name);
            if now == self.wanted[i].index {
                continue;
            }
            if self.wanted[i].index.is_some() {
                self.lost(i);
            }
            let waits = self.wanted[i].retry.is_some_and(|retry| retry > Instant::now());
            if let Some(index) = now.filter(|_| !waits)
                && let Err(error) = self.attach(i, index)
            {
                let name = &self.wanted[i].name;
                tracing::error!(
                    interface = name,
                    "cannot be attached to, tried again in 5 s: {error}"
                );
                self.wanted[i].retry = Some(Instant::now() + RETRY);
            }
            self.publish();
        }
    }

    fn attach(&mut self, i: usize, index: u32) -> Result<(), GuardError> {
        let wanted = &mut self.wanted[i];
        wanted.attachment = self.guard.attach(&wanted.name, self.mode)?;
        wanted.index = Some(index);
        wanted.retry = None;
        let Attachment { name, ingress, egress } = &wanted.attachment;
        let mode = |mode: &Option<Mode>| mode.map_or("none", Mode::name);
        let message =
            format!("{name} attached, ingress {}, egress {}", mode(ingress), mode(egress));
        self.state.events.record(EventView::message("interface", message));
        Ok(())
    }

    /// An interface went away, or another one has its name.
    fn lost(&mut self, i: usize) {
        let name = self.wanted[i].name.clone();
        if let Err(error) = self.guard.detach(&name) {
            tracing::warn!(interface = name, "its pins cannot be removed: {error}");
        }
        self.wanted[i] = Wanted::new(&name);
        let message = format!("{name} went away; it is attached to again when it comes back");
        self.state.events.record(EventView::message("interface", message));
    }

    /// The configuration wants these interfaces from now on.
    fn want(&mut self, interfaces: &[String]) {
        let (kept, dropped): (Vec<Wanted>, Vec<Wanted>) =
            self.wanted.drain(..).partition(|wanted| interfaces.contains(&wanted.name));
        self.wanted = kept;
        for wanted in dropped.iter().filter(|wanted| wanted.index.is_some()) {
            if let Err(error) = self.guard.detach(&wanted.name) {
                tracing::error!(interface = wanted.name, "cannot be detached from: {error}");
            }
            let message = format!("{} is wanted no more, and not protected", wanted.name);
            self.state.events.record(EventView::message("interface", message));
        }
        for name in interfaces {
            if !self.wanted.iter().any(|wanted| wanted.name == *name) {
                self.wanted.push(Wanted::new(name));
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.state.set_attachments(self.wanted.iter().map(|w| w.attachment.clone()).collect());
    }
}

/// The interface's index in this network namespace, which /sys may not be the view of.
fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}
