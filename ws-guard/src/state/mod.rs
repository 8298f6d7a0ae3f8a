//! State shared by the daemon's parts.
//! It has the readers of the maps, their only writer, latest events, configuration and attachments.

pub mod events;
pub mod listing;
pub mod reader;
pub mod survey;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use tokio::sync::Notify;

use self::{
    events::EventLog,
    reader::Reader,
    survey::{Survey, Surveys},
};
use crate::{
    config::Settings,
    domain::{
        clock::Timestamp,
        status::{ConfigStatus, PatternStatus, Status},
    },
    guard::{Attachment, GuardError, Maps, Overtaken, Role},
    operator::{policy::Operator, state_file::StateFile},
};

/// State shared by API, metrics, supervision and reload. Cheap to clone.
#[derive(Clone)]
pub struct State {
    pub reader: Reader,
    pub operator: Operator,
    pub events: EventLog,
    pub surveys: Arc<Surveys>,
    inner: Arc<Inner>,
}

struct Inner {
    pin_dir: PathBuf,
    started: Instant,
    started_at: SystemTime,
    /// Configuration in force, and the result of its latest reload.
    config: Mutex<Config>,
    /// Every wanted interface, attached or awaited.
    attachments: Mutex<Vec<Attachment>>,
    patterns: Mutex<Vec<PatternStatus>>,
    reloads_ok: AtomicU64,
    reloads_failed: AtomicU64,
    events_dropped: AtomicU64,
    suspicion: Notify,
    /// Set when an operator throttles something, which the kernel does not report.
    throttled_by_hand: AtomicBool,
    /// Number of attachments removed by others.
    attachments_lost: AtomicU64,
    /// Description of pins removed by others, until they are restored.
    pins_lost: Mutex<Option<String>>,
    /// Other programs that run before the guard's.
    overtaken: Mutex<Vec<Overtaken>>,
}

/// Configuration in force, and the result of its latest reload.
pub struct Config {
    pub settings: Settings,
    pub loaded: Timestamp,
    pub errors: Option<Vec<String>>,
    pub restart_needed: Vec<String>,
}

impl State {
    pub fn new(maps: Maps, pin_dir: PathBuf, settings: Settings) -> State {
        let path = settings.run.state_file.path(&pin_dir);
        let file = path.and_then(|path| StateFile::new(&path));
        let config =
            Config { settings, loaded: Timestamp::now(), errors: None, restart_needed: Vec::new() };
        State {
            reader: Reader { maps: maps.clone() },
            operator: Operator::new(maps, file),
            events: EventLog::default(),
            surveys: Arc::default(),
            inner: Arc::new(Inner {
                pin_dir,
                started: Instant::now(),
                started_at: SystemTime::now(),
                config: Mutex::new(config),
                attachments: Mutex::default(),
                patterns: Mutex::default(),
                reloads_ok: AtomicU64::new(0),
                reloads_failed: AtomicU64::new(0),
                events_dropped: AtomicU64::new(0),
                suspicion: Notify::new(),
                throttled_by_hand: AtomicBool::new(false),
                attachments_lost: AtomicU64::new(0),
                pins_lost: Mutex::default(),
                overtaken: Mutex::default(),
            }),
        }
    }

    pub fn config(&self) -> MutexGuard<'_, Config> {
        self.inner.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Return every wanted interface, attached or awaited.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.inner.attachments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Return the patterns of wanted interfaces.
    pub fn patterns(&self) -> Vec<PatternStatus> {
        self.inner.patterns.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_attachments(&self, attachments: Vec<Attachment>, patterns: Vec<PatternStatus>) {
        *self.inner.attachments.lock().unwrap_or_else(PoisonError::into_inner) = attachments;
        *self.inner.patterns.lock().unwrap_or_else(PoisonError::into_inner) = patterns;
    }

    /// Check for a policy in force and wanted interfaces attached on both sides.
    /// The error says what is missing. A pattern of pods' interfaces may match nothing, as a node
    /// need not have pods; one of uplinks that matches nothing guards nothing.
    pub fn ready(&self) -> Result<(), String> {
        let attachments = self.attachments();
        let waits = |a: &&Attachment| a.ingress.is_none() || a.egress.is_none();
        let waiting: Vec<&str> =
            attachments.iter().filter(waits).map(|a| a.name.as_str()).collect();
        let patterns = self.patterns();
        let uplinks = patterns.iter().find(|pattern| pattern.role == Role::Uplink);
        match uplinks {
            Some(pattern) if attachments.is_empty() => {
                return Err(format!("not attached: no interface matches {}", pattern.pattern));
            }
            None if attachments.is_empty() && patterns.is_empty() => {
                return Err("nothing is attached yet".into());
            }
            _ => {}
        }
        if !waiting.is_empty() {
            return Err(format!("not attached: {}", waiting.join(", ")));
        }
        if let Some(lost) = self.pins_lost() {
            return Err(lost);
        }
        match self.reader.maps.policy() {
            Ok(policy) if policy.rate.limit > 0 => Ok(()),
            Ok(_) => Err("no policy is in force".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub fn count_reload(&self, ok: bool) {
        let counter = if ok { &self.inner.reloads_ok } else { &self.inner.reloads_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Return the numbers of successful and of refused reloads.
    pub fn reloads(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.inner.reloads_ok), load(&self.inner.reloads_failed))
    }

    /// Set the total of events that the daemon took too slowly from their reader.
    pub fn set_events_dropped(&self, count: u64) {
        self.inner.events_dropped.store(count, Ordering::Relaxed);
    }

    pub fn events_dropped(&self) -> u64 {
        self.inner.events_dropped.load(Ordering::Relaxed)
    }

    /// Return the notice of a proxy that the kernel suspects.
    pub fn suspicion(&self) -> &Notify {
        &self.inner.suspicion
    }

    /// Note a throttle by something other than the kernel's programs.
    pub fn tell_throttle(&self) {
        self.inner.throttled_by_hand.store(true, Ordering::Release);
    }

    /// Check for such a throttle since the last call.
    pub fn take_throttle(&self) -> bool {
        self.inner.throttled_by_hand.swap(false, Ordering::AcqRel)
    }

    /// Add to the number of attachments removed by others.
    pub fn count_lost(&self, attachments: u64) {
        self.inner.attachments_lost.fetch_add(attachments, Ordering::Relaxed);
    }

    pub fn attachments_lost(&self) -> u64 {
        self.inner.attachments_lost.load(Ordering::Relaxed)
    }

    /// Set the description of missing pins, or none; return whether it has changed.
    pub fn set_pins_lost(&self, lost: Option<String>) -> bool {
        let mut known = self.inner.pins_lost.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *known, lost.clone()) != lost
    }

    pub fn pins_lost(&self) -> Option<String> {
        self.inner.pins_lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Set the programs found to run before the guard's; return the new ones.
    pub fn set_overtaken(&self, found: Vec<Overtaken>) -> Vec<Overtaken> {
        let mut known = self.inner.overtaken.lock().unwrap_or_else(PoisonError::into_inner);
        let new = found.iter().filter(|one| !known.contains(one)).cloned().collect();
        *known = found;
        new
    }

    pub fn overtaken(&self) -> Vec<Overtaken> {
        self.inner.overtaken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn started_at(&self) -> SystemTime {
        self.inner.started_at
    }

    pub fn pin_dir(&self) -> &Path {
        &self.inner.pin_dir
    }

    /// Return the current state.
    pub fn status(&self) -> Result<Status, GuardError> {
        self.status_with(&*self.surveys.renew(&self.reader)?)
    }

    /// Return the state with slightly older tables, for frequent readers.
    pub fn recent_status(&self) -> Result<Status, GuardError> {
        self.status_with(&*self.surveys.recent(&self.reader)?)
    }

    /// Return the state with an existing survey.
    pub fn status_with(&self, survey: &Survey) -> Result<Status, GuardError> {
        let pin_dir = &self.inner.pin_dir;
        let mut status = self.reader.status_with(survey, pin_dir, self.attachments())?;
        status.pid = Some(std::process::id());
        status.patterns = self.patterns();
        status.uptime_seconds = Some(self.inner.started.elapsed().as_secs());
        let config = self.config();
        status.config = Some(ConfigStatus {
            file: config.settings.file.as_ref().map(|file| file.display().to_string()),
            loaded: Some(config.loaded),
            errors: config.errors.clone(),
            restart_needed: config.restart_needed.clone(),
            overrides: config.settings.policy.differences(&status.policy),
        });
        Ok(status)
    }
}
