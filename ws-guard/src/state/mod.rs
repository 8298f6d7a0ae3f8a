//! What the daemon's parts share: the readers of its maps, their one writer, the latest events, the
//! configuration in force, and the attachments.

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

/// Shared by API, metrics, supervision and reload. Cheap to clone.
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
    /// The configuration in force, and how its latest reload went.
    config: Mutex<Config>,
    /// Every wanted interface, attached or waited for.
    attachments: Mutex<Vec<Attachment>>,
    patterns: Mutex<Vec<PatternStatus>>,
    reloads_ok: AtomicU64,
    reloads_failed: AtomicU64,
    events_dropped: AtomicU64,
    suspicion: Notify,
    /// An operator throttled something, of which the kernel tells nothing.
    throttled_by_hand: AtomicBool,
    /// Attachments that others took away.
    attachments_lost: AtomicU64,
    /// What others removed of the pins, while it is not there.
    pins_lost: Mutex<Option<String>>,
    /// Programs of others that run before the guard's.
    overtaken: Mutex<Vec<Overtaken>>,
}

/// The configuration in force, and how its latest reload went.
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

    /// Every wanted interface, attached or waited for.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.inner.attachments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The patterns of wanted interfaces.
    pub fn patterns(&self) -> Vec<PatternStatus> {
        self.inner.patterns.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_attachments(&self, attachments: Vec<Attachment>, patterns: Vec<PatternStatus>) {
        *self.inner.attachments.lock().unwrap_or_else(PoisonError::into_inner) = attachments;
        *self.inner.patterns.lock().unwrap_or_else(PoisonError::into_inner) = patterns;
    }

    /// Every wanted interface is attached on both sides, and a policy is in force; else what is
    /// missing. A pattern of pods' interfaces may match nothing: a node need not have pods. One of
    /// uplinks that matches nothing guards nothing.
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

    /// Reloads that took effect, and reloads that were refused.
    pub fn reloads(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.inner.reloads_ok), load(&self.inner.reloads_failed))
    }

    /// Events that the daemon took too slowly from the kernel's reader, in all.
    pub fn set_events_dropped(&self, count: u64) {
        self.inner.events_dropped.store(count, Ordering::Relaxed);
    }

    pub fn events_dropped(&self) -> u64 {
        self.inner.events_dropped.load(Ordering::Relaxed)
    }

    /// Woken when the kernel suspects a proxy.
    pub fn suspicion(&self) -> &Notify {
        &self.inner.suspicion
    }

    /// Somebody else than the kernel's programs throttled a source.
    pub fn tell_throttle(&self) {
        self.inner.throttled_by_hand.store(true, Ordering::Release);
    }

    /// Whether that was so since it was last asked.
    pub fn take_throttle(&self) -> bool {
        self.inner.throttled_by_hand.swap(false, Ordering::AcqRel)
    }

    /// Number of attachments removed by others.
    pub fn count_lost(&self, attachments: u64) {
        self.inner.attachments_lost.fetch_add(attachments, Ordering::Relaxed);
    }

    pub fn attachments_lost(&self) -> u64 {
        self.inner.attachments_lost.load(Ordering::Relaxed)
    }

    /// What is missing of the pins, or nothing; whether that is news.
    pub fn set_pins_lost(&self, lost: Option<String>) -> bool {
        let mut known = self.inner.pins_lost.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *known, lost.clone()) != lost
    }

    pub fn pins_lost(&self) -> Option<String> {
        self.inner.pins_lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Programs of others that run before the guard's, as last found; returns those that are news.
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

    /// As it is now.
    pub fn status(&self) -> Result<Status, GuardError> {
        self.status_with(&*self.surveys.renew(&self.reader)?)
    }

    /// The same, with tables as they were a moment ago: for who asks often.
    pub fn recent_status(&self) -> Result<Status, GuardError> {
        self.status_with(&*self.surveys.recent(&self.reader)?)
    }

    /// The same, with a survey that was taken already.
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
