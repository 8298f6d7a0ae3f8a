//! Survey of the tables at one moment: sums, and the few most interesting entries.
//!
//! The kernel keeps no such sums, so the tables are read, entry by entry and in constant memory. A
//! few thousand entries take a millisecond, so a frequent reader, such as a scraper, gets an
//! earlier survey.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ws_guard_common::{
    flow::{Flow, state},
    maps::{FlowKey, SourceKey},
};

use super::reader::Reader;
use crate::{
    domain::{
        clock::Clock,
        flow::FlowStates,
        silence::Silence,
        source::{SourceState, SourceViews},
        suspects::{Peers, SuspectedProxy},
    },
    guard::{GuardError, Handshakes},
};

/// Maximum number of servers with their own figures; others are counted together.
const SERVERS: usize = 64;
/// Maximum number of sources kept, of each kind.
pub const FIRST: usize = 50;
/// Longest heartbeat that is distinguished from longer ones, microseconds.
const LONGEST_US: u64 = 60_000_000;
/// Significant digits of a heartbeat.
const DIGITS: u8 = 2;
/// Lifetime of a survey, as a multiple of its duration...
const GOOD: u32 = 100;
/// ...and its maximum.
const OLDEST: Duration = Duration::from_secs(60);
/// Time that a frequent reader waits for a survey at most.
const SHORT: Duration = Duration::from_millis(10);

/// Result of reading the tables.
pub struct Survey {
    /// End of the reading, and its duration.
    at: Instant,
    took: Duration,
    pub flow_states: FlowStates,
    /// Open connections by their silence.
    pub silence: Silence,
    pub handshakes: Occupied,
    pub midstream: u32,
    /// Number of sources, including coarser prefixes, and of these alone.
    pub sources: u32,
    pub coarse: u32,
    /// Number of sources that are throttled now.
    pub throttled: u32,
    pub proxies_suspected: Vec<SuspectedProxy>,
    /// By address and port; those beyond the maximum are under `None`.
    pub servers: BTreeMap<Option<SocketAddr>, Server>,
    /// Throttled sources with the most pings, and their number, the most first...
    pub worst: Vec<(SourceKey, u64)>,
    /// ...and some of the sources with paced connections.
    pub paced: HashSet<SourceKey>,
}

/// Numbers of entries in the two tables of requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Occupied {
    pub pending: u32,
    pub proven: u32,
}

/// Open connections of one server.
#[derive(Clone, Default)]
pub struct Server {
    pub connections: u32,
    pub paced: u32,
    heartbeats: Option<Histogram<u32>>,
}

impl Server {
    fn add(&mut self, flow: &Flow, now_ns: u64) {
        self.connections += 1;
        self.paced += u32::from(flow.is_paced(now_ns));
        if flow.heartbeat_rtt_us != 0 {
            self.beat(|beats| beats.saturating_record(flow.heartbeat_rtt_us.into()));
        }
    }

    fn beat(&mut self, record: impl FnOnce(&mut Histogram<u32>)) {
        if self.heartbeats.is_none() {
            // The bounds are constants that fit each other.
            self.heartbeats = Histogram::new_with_bounds(1, LONGEST_US, DIGITS).ok();
        }
        self.heartbeats.as_mut().map(record);
    }

    /// Add another server's connections.
    pub fn merge(&mut self, other: &Server) {
        self.connections += other.connections;
        self.paced += other.paced;
        if let Some(theirs) = &other.heartbeats {
            // Both have the same bounds.
            self.beat(|beats| beats.add(theirs).unwrap_or_default());
        }
    }

    /// Return the number of connections with a heartbeat.
    pub fn beating(&self) -> u64 {
        self.heartbeats.as_ref().map_or(0, Histogram::len)
    }

    /// Return a percentile of connections' latest heartbeats, in milliseconds.
    pub fn percentile_ms(&self, percent: f64) -> Option<f64> {
        let beats = self.heartbeats.as_ref().filter(|beats| !beats.is_empty())?;
        Some(beats.value_at_percentile(percent) as f64 / 1000.0)
    }
}

impl Survey {
    /// Read the tables.
    pub fn take(reader: &Reader) -> Result<Survey, GuardError> {
        let began = Instant::now();
        let views = reader.source_views()?;
        let Handshakes { keys, pending, proven } = reader.maps.handshakes()?;
        let mut survey = Survey {
            at: began,
            took: Duration::ZERO,
            flow_states: FlowStates { handshake: keys.len() as u32, ..FlowStates::default() },
            silence: Silence::default(),
            handshakes: Occupied { pending, proven },
            midstream: reader.maps.midstream_count()?,
            sources: 0,
            coarse: reader.maps.coarse_count()?,
            throttled: 0,
            proxies_suspected: Vec::new(),
            servers: BTreeMap::new(),
            worst: Vec::new(),
            paced: HashSet::new(),
        };
        survey.read_flows(reader, &views)?;
        survey.read_sources(reader, &views)?;
        survey.at = Instant::now();
        survey.took = survey.at.duration_since(began);
        Ok(survey)
    }

    fn read_flows(&mut self, reader: &Reader, views: &SourceViews) -> Result<(), GuardError> {
        let now_ns = Clock::now().now_ns;
        let mut peers = Peers::default();
        reader.maps.each_flow(|key, flow| {
            self.flow_states.add(flow, now_ns);
            self.silence.add(key, flow, now_ns);
            peers.add(key, flow, views);
            if flow.state != state::CLOSED {
                self.server(key).add(flow, now_ns);
                if flow.is_paced(now_ns) && self.paced.len() < FIRST {
                    self.paced.insert(flow.account.source);
                }
            }
        })?;
        self.proxies_suspected = peers.suspected(&reader.maps.suspects()?, views);
        Ok(())
    }

    fn server(&mut self, key: &FlowKey) -> &mut Server {
        let server = Some(key.server_addr());
        let has_room = self.servers.len() < SERVERS || self.servers.contains_key(&server);
        self.servers.entry(server.filter(|_| has_room)).or_default()
    }

    fn read_sources(&mut self, reader: &Reader, views: &SourceViews) -> Result<(), GuardError> {
        let mut worst = BinaryHeap::with_capacity(FIRST + 1);
        reader.maps.each_source(|key, source| {
            self.sources += 1;
            if views.state(key, source) == SourceState::Throttled {
                self.throttled += 1;
                worst.push(Reverse((source.pings_total, *key)));
                if worst.len() > FIRST {
                    worst.pop();
                }
            }
        })?;
        let worst = worst.into_sorted_vec().into_iter();
        self.worst = worst.map(|Reverse((pings, key))| (key, pings)).collect();
        Ok(())
    }

    /// Return the time that reading the tables took.
    pub const fn took(&self) -> Duration {
        self.took
    }

    /// Check whether the survey is recent, in proportion to the cost of another.
    fn is_good(&self, for_times: u32) -> bool {
        self.at.elapsed() <= (self.took * for_times).min(OLDEST)
    }
}

/// Latest survey, shared by all readers.
#[derive(Default)]
pub struct Surveys {
    latest: Mutex<Option<Arc<Survey>>>,
    /// Held while the tables are read for a waiting caller.
    reading: Mutex<()>,
    /// Set while a renewal runs in the background.
    renewing: AtomicBool,
}

impl Surveys {
    /// Take a new survey.
    pub fn renew(&self, reader: &Reader) -> Result<Arc<Survey>, GuardError> {
        let survey = Arc::new(Survey::take(reader)?);
        *self.known() = Some(survey.clone());
        Ok(survey)
    }

    /// Return a survey, reading tables an `n`th of the time at most. Waits for that.
    pub fn within(&self, reader: &Reader, n: u32) -> Result<Arc<Survey>, GuardError> {
        let good = || self.known().clone().filter(|known| known.is_good(n));
        if let Some(known) = good() {
            return Ok(known);
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        // Another caller may have read them meanwhile.
        good().map_or_else(|| self.renew(reader), Ok)
    }

    /// Return a survey, reading tables a hundredth of the time at most.
    /// A long reading is not waited for: it goes on in the background, and the last survey is
    /// returned.
    pub fn recent(self: &Arc<Self>, reader: &Reader) -> Result<Arc<Survey>, GuardError> {
        let Some(known) = self.known().clone() else { return self.renew(reader) };
        if known.is_good(GOOD) || self.renewing.swap(true, Ordering::AcqRel) {
            return Ok(known);
        }
        let (sender, renewed) = mpsc::channel();
        let (surveys, reader) = (self.clone(), reader.clone());
        std::thread::spawn(move || {
            let survey = surveys.renew(&reader);
            surveys.renewing.store(false, Ordering::Release);
            // The caller may be gone.
            let _ = sender.send(survey);
        });
        renewed.recv_timeout(SHORT).unwrap_or(Ok(known))
    }

    fn known(&self) -> MutexGuard<'_, Option<Arc<Survey>>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beating(us: &[u32]) -> Server {
        let mut server = Server::default();
        for us in us {
            server.add(&Flow { heartbeat_rtt_us: *us, ..Flow::default() }, 0);
        }
        server
    }

    #[test]
    fn heartbeats_of_two_servers_together() {
        let (mut one, none) = (beating(&[1_000; 99]), beating(&[0]));
        assert_eq!((none.connections, none.beating(), none.percentile_ms(50.0)), (1, 0, None));
        one.merge(&none);
        one.merge(&beating(&[500_000; 2]));
        assert_eq!((one.connections, one.beating()), (102, 101));
        let near = |percent, ms: f64| {
            let found = one.percentile_ms(percent).unwrap();
            assert!((found - ms).abs() <= ms / 100.0, "{percent} %: {found}, not {ms}");
        };
        near(50.0, 1.0);
        near(100.0, 500.0);
    }
}
