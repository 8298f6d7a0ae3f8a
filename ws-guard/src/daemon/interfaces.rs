//! Attachment to the wanted interfaces.
//! They may be missing, vanish, return or be renamed; those of pods come and go all the time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    domain::{event::EventView, status::PatternStatus},
    guard::{
        self, AttachMode, Attachment, Guard, GuardError, InterfaceWatcher, Lost, Mode, Role,
        Selection,
    },
    state::State,
};

/// Interval of unprompted checks: for failed attaches, and the daemon's figures.
const INTERVAL: Duration = Duration::from_millis(500);
/// Pause after a failed attach.
const RETRY: Duration = Duration::from_secs(5);

/// Interval of checks of attachments, and of other programs that run before them.
const INSPECTION: Duration = Duration::from_secs(2);

/// Wanted interface.
#[derive(Default)]
struct Wanted {
    /// Index of the attached interface; another one of the same name has its own.
    index: Option<u32>,
    /// Earliest time of the next attempt after a failure.
    retry: Option<Instant>,
    /// Reason of the failure, to report it once.
    failure: Option<String>,
    /// Parts detached by others and not restored, to report them once.
    lost: Vec<Lost>,
    /// Set if the last check found something lost.
    /// An interface that is being deleted loses it too, so only the second check counts.
    doubted: bool,
    attachment: Attachment,
}

impl Wanted {
    fn new(name: &str, role: Role) -> Wanted {
        let attachment = Attachment { name: name.into(), role, ..Attachment::default() };
        Wanted { attachment, ..Wanted::default() }
    }
}

/// Owner of the loaded programs.
pub struct Supervisor {
    guard: Guard,
    state: State,
    mode: AttachMode,
    selection: Selection,
    /// Selected interfaces by name: existing ones, and missing ones selected by name.
    wanted: BTreeMap<String, Wanted>,
    watcher: InterfaceWatcher,
    /// Time of the next check for programs before ours.
    precedence: Instant,
    /// Time of the next check of the attachments.
    inspection: Instant,
}

impl Supervisor {
    /// Attach to every wanted interface that exists.
    /// A named one that is missing or refuses is an error now, at the start; later, and for those
    /// matched by a pattern, attaching is retried.
    pub fn start(
        guard: Guard,
        state: State,
        mode: AttachMode,
        selection: Selection,
    ) -> Result<Supervisor, GuardError> {
        // Created before the first look, so that no change falls between the two.
        let watcher = InterfaceWatcher::new()?;
        let wanted = BTreeMap::new();
        let precedence = Instant::now();
        let inspection = Instant::now() + INSPECTION;
        let mut supervisor =
            Supervisor { guard, state, mode, selection, wanted, watcher, precedence, inspection };
        if supervisor.selection.wants(Role::Pod) {
            supervisor.guard.load_for_pods()?;
        }
        supervisor.watcher.catch_up();
        let names: Vec<String> =
            supervisor.selection.names().map(|(name, _)| name.to_string()).collect();
        for name in names {
            supervisor.attach_named(&name)?;
        }
        supervisor.reconcile();
        supervisor.drop_unwanted();
        supervisor.disown();
        supervisor.warn_of_idle_patterns();
        supervisor.publish();
        Ok(supervisor)
    }

    fn attach_named(&mut self, name: &str) -> Result<(), GuardError> {
        let index = self.watcher.present().find(|(present, _)| *present == name);
        let index = index.map(|(_, index)| index);
        let index = index.ok_or_else(|| GuardError::NoInterface(name.to_string()))?;
        let role = self.selection.role(name).unwrap_or_default();
        self.wanted.insert(name.to_string(), Wanted::new(name, role));
        self.attach(name, index)
    }

    /// Detach from interfaces of an earlier daemon that are no longer configured.
    /// The old programs there would be left unattended. Also remove the pins of interfaces that are
    /// gone.
    fn drop_unwanted(&mut self) {
        let pinned = match guard::pinned_interfaces(self.state.pin_dir()) {
            Ok(pinned) => pinned,
            Err(error) => {
                tracing::warn!("cannot list the attachments of earlier daemons: {error}");
                return;
            }
        };
        for name in pinned {
            if self.wanted.get(&name).is_none_or(|wanted| wanted.index.is_none()) {
                self.detach(&name);
                let exists = self.watcher.present().any(|(present, _)| present == name);
                let fate = if exists { "is no longer selected" } else { "disappeared" };
                let message = format!("{name}, which an earlier daemon guarded, {fate}");
                self.state.events.record(EventView::message("interface", message));
            }
        }
    }

    fn warn_of_idle_patterns(&self) {
        for pattern in self.patterns().iter().filter(|pattern| pattern.interfaces == 0) {
            tracing::warn!(
                pattern = pattern.pattern,
                role = pattern.role.name(),
                "no interface matches; a matching one is attached to as soon as it exists"
            );
        }
    }

    /// Supervise until dropped; `selections` delivers changes of the wanted interfaces.
    pub async fn run(mut self, mut selections: watch::Receiver<Selection>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                Ok(_) = self.watcher.next() => self.watcher.catch_up(),
                Ok(()) = selections.changed() => {
                    self.selection = selections.borrow_and_update().clone();
                    self.select();
                    self.reconcile();
                    self.disown();
                    self.publish();
                }
            }
            self.reconcile();
            self.look_ahead();
            self.inspect();
            self.state.set_events_dropped(self.guard.events_dropped());
        }
    }

    /// Report once that another program runs before the guard's.
    fn look_ahead(&mut self) {
        if self.precedence > Instant::now() {
            return;
        }
        self.precedence = Instant::now() + INSPECTION;
        let found = guard::overtaken(self.state.pin_dir()).unwrap_or_default();
        for new in self.state.set_overtaken(found) {
            tracing::warn!("{new}");
            self.state.events.record(EventView::message("interface", new.to_string()));
        }
    }

    /// Check attachments and pins, report losses, and reattach.
    /// Other privileged processes can remove programs, filters, links and pins.
    fn inspect(&mut self) {
        if self.inspection > Instant::now() {
            return;
        }
        self.inspection = Instant::now() + INSPECTION;
        let unloaded = self.inspect_pins();
        let attached: Vec<Attachment> = self
            .wanted
            .values()
            .filter(|wanted| wanted.index.is_some())
            .map(|wanted| wanted.attachment.clone())
            .collect();
        for attachment in attached {
            match self.guard.lost(&attachment) {
                Ok(lost) if self.is_certain(&attachment.name, &lost) => {
                    self.lose(&attachment, &lost, unloaded);
                }
                Ok(_) => {}
                // It may be gone by now, which the watcher reports.
                Err(error) => tracing::debug!("cannot check its attachment: {error}"),
            }
        }
    }

    /// Check whether a loss is unreported, and was found by the last check too.
    /// If only by this one, the next check is soon.
    fn is_certain(&mut self, name: &str, lost: &[Lost]) -> bool {
        let Some(wanted) = self.wanted.get_mut(name) else { return false };
        let is_new = lost.iter().any(|lost| !wanted.lost.contains(lost));
        let was_doubted = std::mem::replace(&mut wanted.doubted, is_new);
        if is_new && !was_doubted {
            self.inspection = Instant::now() + INTERVAL;
        }
        is_new && was_doubted
    }

    /// Report missing pins once. Return whether all are gone, as by `unload --force`.
    fn inspect_pins(&self) -> bool {
        let missing = self.guard.missing_pins();
        let dir = self.state.pin_dir();
        let unloaded = !missing.is_empty() && missing.iter().any(|path| path.ends_with("FLOWS"));
        let lost = match missing.first() {
            None => None,
            Some(_) if unloaded => Some(format!(
                "the pins in {} were removed: they are not restored, restart ws-guard to protect",
                dir.display()
            )),
            Some(first) => Some(format!(
                "{} of the pins in {} were removed, {} among them: restart ws-guard",
                missing.len(),
                dir.display(),
                first.display()
            )),
        };
        if self.state.set_pins_lost(lost.clone())
            && let Some(lost) = lost
        {
            tracing::error!("{lost}");
            self.state.events.record(EventView::message("interface", lost));
        }
        unloaded
    }

    fn lose(&mut self, attachment: &Attachment, lost: &[Lost], unloaded: bool) {
        let name = &attachment.name;
        self.state.count_lost(lost.len() as u64);
        let what: Vec<String> = lost.iter().map(Lost::to_string).collect();
        let again = self.state.config().settings.run.reattach && !unloaded;
        let then = if again { "attaching again" } else { "it is not reattached" };
        let blind = lost.iter().any(Lost::is_blind) && !unloaded;
        let message = format!("{name} lost its attachment, {then}; {}", what.join(", "));
        tracing::error!(interface = name, "{message}");
        self.state.events.record(EventView::message("interface", message));
        if let Some(wanted) = self.wanted.get_mut(name) {
            wanted.attachment = Lost::left(lost, attachment);
            wanted.lost.extend_from_slice(lost);
        }
        self.publish();
        self.forget_connections();
        if again {
            self.restore(attachment, lost);
        } else if blind {
            self.detach_blind(name);
        }
        self.publish();
    }

    /// Detach the remaining direction.
    /// Without the server's side, requests and the frames after them would wait for an answer that
    /// is never seen.
    fn detach_blind(&mut self, name: &str) {
        self.detach(name);
        if let Some(wanted) = self.wanted.get_mut(name) {
            (wanted.attachment.ingress, wanted.attachment.egress) = (None, None);
        }
    }

    /// Forget all connections after a direction of an interface was not seen.
    /// Their records are out of date: honest segments would look forged. Flows do not name
    /// interfaces.
    fn forget_connections(&self) {
        if let Err(error) = self.state.reader.maps.forget_connections() {
            tracing::warn!("cannot remove connections that were not seen for a while: {error}");
        }
    }

    fn restore(&mut self, attachment: &Attachment, lost: &[Lost]) {
        let name = &attachment.name;
        let restored = self.guard.restore(attachment, lost, self.mode);
        let Some(wanted) = self.wanted.get_mut(name) else { return };
        match restored {
            Ok(attachment) => {
                (wanted.attachment, wanted.lost) = (attachment, Vec::new());
                let message = format!("{name} is reattached");
                self.state.events.record(EventView::message("interface", message));
            }
            Err(error) => {
                tracing::error!(
                    interface = name,
                    "cannot be reattached, retrying every 5 s: {error}"
                );
                (wanted.index, wanted.retry) = (None, Some(Instant::now() + RETRY));
                wanted.failure = Some(error.to_string());
                self.detach_blind(name);
            }
        }
    }

    /// Apply a new selection of interfaces.
    fn select(&mut self) {
        if self.selection.wants(Role::Pod)
            && let Err(error) = self.guard.load_for_pods()
        {
            tracing::error!("cannot load the programs for pods' interfaces: {error}");
        }
        self.warn_of_idle_patterns();
    }

    /// Attach and detach until the attachments match the selection.
    fn reconcile(&mut self) {
        let desired = self.desired();
        let known: Vec<String> = self.wanted.keys().cloned().collect();
        let mut changed = known.len() != desired.len();
        for name in known {
            changed |= self.drop_if_changed(&name, &desired);
        }
        for (name, (index, role)) in desired {
            let wanted =
                self.wanted.entry(name.clone()).or_insert_with(|| Wanted::new(&name, role));
            let waits = wanted.retry.is_some_and(|retry| retry > Instant::now());
            if let Some(index) = index.filter(|_| wanted.index.is_none() && !waits) {
                changed = true;
                self.try_attach(&name, index);
            }
        }
        if changed {
            self.publish();
        }
    }

    /// Forget the flows of a role that no interface has any more.
    /// They are not followed, and the programs of the other role would leave them to it.
    fn disown(&self) {
        let gone = Role::ALL.into_iter().filter(|role| !self.selection.wants(*role));
        if let Err(error) = self.state.reader.maps.remove_flows_of(&gone.collect::<Vec<_>>()) {
            tracing::warn!("cannot remove connections without an owner: {error}");
        }
    }

    /// Return the interfaces to guard: name, index if existing, and role.
    fn desired(&self) -> BTreeMap<String, (Option<u32>, Role)> {
        let named = self.selection.names();
        let mut desired: BTreeMap<String, (Option<u32>, Role)> =
            named.map(|(name, role)| (name.to_string(), (None, role))).collect();
        for (name, index) in self.watcher.present() {
            if let Some(role) = self.selection.role(name) {
                desired.insert(name.to_string(), (Some(index), role));
            }
        }
        desired
    }

    /// Detach from an interface that has changed; return whether it has.
    fn drop_if_changed(
        &mut self,
        name: &str,
        desired: &BTreeMap<String, (Option<u32>, Role)>,
    ) -> bool {
        let Some(wanted) = self.wanted.get(name) else { return false };
        let (was, role) = (wanted.index, wanted.attachment.role);
        let now = desired.get(name);
        let message = match now {
            None if self.exists(name, was) => {
                format!("{name} is no longer selected, and not protected")
            }
            None => format!("{name} went away"),
            Some((_, now)) if *now != role => format!("{name} is now a {}", now.name()),
            Some((now, _)) if was.is_some() && *now != was => {
                format!("{name} disappeared; it is reattached when it reappears")
            }
            Some(_) => return false,
        };
        // Also after a failed attach, which may leave the pins of one direction. A new role
        // replaces the old one without a gap.
        if now.is_none_or(|(index, _)| *index != was) {
            self.detach(name);
            if self.exists(name, was) {
                self.forget_connections();
            }
        }
        if was.is_some() {
            self.state.events.record(EventView::message("interface", message));
        }
        self.wanted.remove(name);
        true
    }

    fn exists(&self, name: &str, index: Option<u32>) -> bool {
        self.watcher.present().any(|(present, now)| present == name && Some(now) == index)
    }

    fn detach(&mut self, name: &str) {
        if let Err(error) = self.guard.detach(name) {
            tracing::error!(interface = name, "cannot be detached: {error}");
        }
    }

    fn try_attach(&mut self, name: &str, index: u32) {
        let Err(error) = self.attach(name, index) else { return };
        let Some(wanted) = self.wanted.get_mut(name) else { return };
        wanted.retry = Some(Instant::now() + RETRY);
        // The kernel reports this for an interface that disappeared just now.
        let failure = Some(error.to_string());
        if !matches!(error, GuardError::NoInterface(_)) && wanted.failure != failure {
            wanted.failure = failure;
            tracing::error!(interface = name, "cannot be attached, retrying every 5 s: {error}");
        }
    }

    fn attach(&mut self, name: &str, index: u32) -> Result<(), GuardError> {
        let Some(wanted) = self.wanted.get_mut(name) else { return Ok(()) };
        wanted.attachment = match wanted.attachment.role {
            Role::Uplink => self.guard.attach(name, self.mode)?,
            Role::Pod => self.guard.attach_pod(name, self.mode)?,
        };
        wanted.index = Some(index);
        (wanted.retry, wanted.failure) = (None, None);
        wanted.lost.clear();
        let Attachment { role, ingress, egress, .. } = &wanted.attachment;
        let mode = |mode: &Option<Mode>| mode.map_or("none", Mode::name);
        let (ingress, egress) = (mode(ingress), mode(egress));
        let message =
            format!("{name} attached as {}, ingress {ingress}, egress {egress}", role.name());
        self.state.events.record(EventView::message("interface", message));
        Ok(())
    }

    fn publish(&self) {
        let attachments = self.wanted.values().map(|wanted| wanted.attachment.clone()).collect();
        self.state.set_attachments(attachments, self.patterns());
    }

    fn patterns(&self) -> Vec<PatternStatus> {
        let patterns = self.selection.patterns().map(|(pattern, role)| {
            let present = self.watcher.present().map(|(name, _)| name);
            let interfaces = self.selection.taken(pattern, role, present);
            PatternStatus { pattern: pattern.to_string(), role, interfaces }
        });
        patterns.collect()
    }
}
