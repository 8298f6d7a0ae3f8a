//! Admission of connections and their pings, by source; shared by all shards.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::{sync::Notify, time::timeout};
use ws_guard_common::window::{Rate, RateWindow};

use super::{bucket::Bucket, config::Config, proxies::Caller};

/// Minimum interval of removing unused sources.
const SWEEP: Duration = Duration::from_secs(1);

/// Reason to refuse a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// [`Config::max_connections`].
    Server,
    /// [`Config::max_connections_per_source`].
    Source,
    /// [`Config::max_connections_per_user`].
    User,
}

/// Unit of counting: a network, or one connection of a proxy in it.
type Counted = (IpNet, Option<u16>);

/// State of a source.
#[derive(Debug, Default)]
struct Source {
    connections: usize,
    /// Number of this peer's connections for which it does not vouch.
    /// Each is charged for its pings alone, and all of them together have the places of one more
    /// source.
    unvouched: usize,
    handshakes: usize,
    /// Ping window, once a ping came. It outlasts the connections.
    /// Otherwise reconnecting would be a way around the limit.
    pings: Option<Box<RateWindow>>,
    last_ping_ms: u32,
    /// Window length at the last charge.
    window_ms: u32,
}

impl Source {
    /// Check whether the source has open connections or handshakes.
    fn is_open(&self) -> bool {
        self.connections + self.unvouched + self.handshakes > 0
    }
}

/// Return where the connections of a source are counted.
/// One that is a source of its own would never exceed a limit, so those of a peer are counted
/// together, apart from the peer's other ones.
fn place((network, port): Counted) -> (Counted, fn(&mut Source) -> &mut usize) {
    let count: fn(&mut Source) -> &mut usize = match port {
        Some(_) => |source| &mut source.unvouched,
        None => |source| &mut source.connections,
    };
    ((network, None), count)
}

#[derive(Debug)]
struct Sources {
    by_source: HashMap<Counted, Source>,
    /// Number of open connections by identified user.
    by_user: HashMap<Box<str>, usize>,
    swept: Instant,
}

impl Sources {
    /// Decrement `count` of a source, and remove the source if nothing is left.
    fn leave(&mut self, of: Counted, count: impl FnOnce(&mut Source) -> &mut usize) {
        let Entry::Occupied(mut entry) = self.by_source.entry(of) else { return };
        let source = entry.get_mut();
        let count = count(source);
        *count = count.saturating_sub(1);
        if !source.is_open() && source.pings.is_none() {
            entry.remove();
        }
    }
}

/// Counts of open connections and handshakes.
#[derive(Debug)]
pub struct Admission {
    started: Instant,
    handshakes: AtomicUsize,
    /// Notification that a handshake has ended.
    ended: Notify,
    open: AtomicUsize,
    sources: Mutex<Sources>,
    /// Rate of new connections.
    pub(super) rate: Bucket,
}

impl Default for Admission {
    fn default() -> Admission {
        let now = Instant::now();
        Admission {
            started: now,
            handshakes: AtomicUsize::new(0),
            ended: Notify::new(),
            open: AtomicUsize::new(0),
            sources: Mutex::new(Sources {
                by_source: HashMap::new(),
                by_user: HashMap::new(),
                swept: now,
            }),
            rate: Bucket::default(),
        }
    }
}

impl Admission {
    /// Wait up to `patience` for room for another handshake; return whether there is.
    ///
    /// Reconnecting clients connect sooner than they send a request. Those that would be refused
    /// only come again, and cost another response.
    pub async fn room(&self, patience: Duration, config: &Config) -> bool {
        let ended = self.ended.notified();
        let is_room = || self.handshaking() < config.max_handshakes;
        is_room() || (!patience.is_zero() && timeout(patience, ended).await.is_ok())
    }

    /// Begin a handshake, unless there are too many.
    /// Half of the places are for others than this source, so that silent clients cannot use up all
    /// places; a trusted proxy speaks for many.
    pub fn handshake(
        self: &Arc<Admission>,
        address: IpAddr,
        config: &Config,
    ) -> Option<Handshaking> {
        let before = self.handshakes.fetch_add(1, Ordering::Relaxed);
        let source = (config.pings.source_of(address), None);
        // From here on its end reverts the count.
        let handshaking = Handshaking { admission: self.clone(), source };
        let mut sources = self.sources();
        let entry = sources.by_source.entry(source).or_default();
        entry.handshakes += 1;
        let too_many = entry.handshakes > config.max_handshakes.div_ceil(2);
        drop(sources);
        let source_full = too_many && !config.proxies.trust(address);
        (before < config.max_handshakes && !source_full).then_some(handshaking)
    }

    /// Count a connection of `user` from `caller`, for the lifetime of the ticket.
    pub fn admit(
        self: &Arc<Admission>,
        caller: Caller,
        user: Option<&str>,
        config: &Config,
    ) -> Result<Ticket, Full> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= config.max_connections {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Server);
        }
        let source = (config.pings.source_of(caller.address), caller.port);
        // From here on the ticket's end reverts the count.
        let ticket = Ticket { admission: self.clone(), source, user: user.map(Box::from) };
        let mut sources = self.sources();
        self.sweep(&mut sources);
        let (counted, count) = place(source);
        let count = count(sources.by_source.entry(counted).or_default());
        *count += 1;
        let source_full = *count > config.max_connections_per_source;
        let of_user = user.map_or(0, |user| {
            let count = sources.by_user.entry(Box::from(user)).or_default();
            *count += 1;
            *count
        });
        drop(sources);
        if source_full {
            Err(Full::Source)
        } else if of_user > config.max_connections_per_user {
            Err(Full::User)
        } else {
            Ok(ticket)
        }
    }

    /// Return the number of pending handshakes.
    pub fn handshaking(&self) -> usize {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Return the number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Return milliseconds on the clock that stamps pings.
    pub fn clock_ms(&self) -> u32 {
        self.started.elapsed().as_millis() as u32
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        // Counts stay valid when a thread panics between two of them.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remove sources without connections, handshakes and pings in their window.
    fn sweep(&self, sources: &mut Sources) {
        let now = Instant::now();
        if now.duration_since(sources.swept) < SWEEP {
            return;
        }
        sources.swept = now;
        let now_ms = self.clock_ms();
        sources.by_source.retain(|_, source| {
            let pinged = source.pings.is_some()
                && now_ms.wrapping_sub(source.last_ping_ms) < source.window_ms;
            source.is_open() || pinged
        });
    }
}

/// Pending handshake.
#[derive(Debug)]
pub struct Handshaking {
    admission: Arc<Admission>,
    source: Counted,
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.admission.handshakes.fetch_sub(1, Ordering::Relaxed);
        self.admission.sources().leave(self.source, |source| &mut source.handshakes);
        self.admission.ended.notify_waiters();
    }
}

/// Admitted connection.
#[derive(Debug)]
pub struct Ticket {
    admission: Arc<Admission>,
    source: Counted,
    user: Option<Box<str>>,
}

impl Ticket {
    /// Return the source for which the connection is counted.
    pub fn source(&self) -> &IpNet {
        &self.source.0
    }

    /// Check whether the connection is a source of its own: its client is unknown.
    pub fn is_alone(&self) -> bool {
        self.source.1.is_some()
    }

    /// Charge the source for a ping, and return whether it is within `rate`.
    pub fn charge_ping(&self, rate: Rate) -> bool {
        if rate.limit == 0 {
            return true;
        }
        let now_ms = self.admission.clock_ms();
        let mut sources = self.admission.sources();
        let source = sources.by_source.entry(self.source).or_default();
        source.last_ping_ms = now_ms;
        source.window_ms = rate.window_ms;
        source.pings.get_or_insert_default().charge(now_ms, rate, 1) == 1
    }

    /// Return milliseconds on the clock that stamps pings.
    pub fn clock_ms(&self) -> u32 {
        self.admission.clock_ms()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
        let mut sources = self.admission.sources();
        let (counted, count) = place(self.source);
        sources.leave(counted, count);
        let user = self.user.take().map(|user| sources.by_user.entry(user));
        let Some(Entry::Occupied(mut entry)) = user else { return };
        *entry.get_mut() = entry.get().saturating_sub(1);
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new(([127, 0, 0, 1], 0).into());
        config.max_connections = 3;
        config.max_connections_per_source = 2;
        config.max_handshakes = 1;
        config
    }

    fn caller(text: &str) -> Caller {
        Caller::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_connection_without_a_known_client_is_charged_alone() {
        let (admission, config) = (Arc::new(Admission::default()), config());
        let proxy = caller("10.0.0.1");
        let alone = |port| Caller { port: Some(port), ..proxy };
        let rate = Rate::new(1, 10_000, 1).unwrap();
        let tickets = [alone(1), alone(2), proxy].map(|who| {
            let ticket = admission.admit(who, None, &config).unwrap();
            assert!(ticket.charge_ping(rate) && !ticket.charge_ping(rate), "{who}");
            ticket
        });
        drop(tickets);
    }

    #[test]
    fn limits_hold_and_tickets_give_back() {
        let (admission, config) = (Arc::new(Admission::default()), config());
        let [one, two] = [caller("10.0.0.1"), caller("10.0.0.2")];
        let first = admission.admit(one, None, &config).unwrap();
        let _second = admission.admit(one, None, &config).unwrap();
        assert_eq!(admission.admit(one, None, &config).unwrap_err(), Full::Source);
        let _third = admission.admit(two, None, &config).unwrap();
        assert_eq!(admission.admit(two, None, &config).unwrap_err(), Full::Server);
        drop(first);
        assert!(admission.admit(one, None, &config).is_ok());
        assert_eq!(admission.open(), 2);
    }

    #[test]
    fn a_bad_header_is_no_way_around_the_limit_of_connections() {
        let (admission, mut config) = (Arc::new(Admission::default()), config());
        config.max_connections = 10;
        let proxy = caller("10.0.0.1");
        let alone = |port| Caller { port: Some(port), ..proxy };
        let first = admission.admit(alone(1), None, &config).unwrap();
        let _second = admission.admit(alone(2), None, &config).unwrap();
        assert_eq!(admission.admit(alone(3), None, &config).unwrap_err(), Full::Source);
        // Nor do they take the places of others.
        let _others = [proxy, caller("10.0.0.2")]
            .map(|who| [(); 2].map(|()| admission.admit(who, None, &config).unwrap()));
        drop(first);
        assert!(admission.admit(alone(4), None, &config).is_ok());
    }

    #[test]
    fn a_user_is_counted_over_all_addresses() {
        let (admission, mut config) = (Arc::new(Admission::default()), config());
        config.max_connections_per_user = 1;
        let [one, two] = [caller("10.0.0.1"), caller("10.0.0.2")];
        let first = admission.admit(one, Some("u-1"), &config).unwrap();
        assert_eq!(admission.admit(two, Some("u-1"), &config).unwrap_err(), Full::User);
        assert!(admission.admit(two, Some("u-2"), &config).is_ok());
        drop(first);
        assert!(admission.admit(two, Some("u-1"), &config).is_ok());
    }

    #[test]
    fn handshakes_are_limited() {
        let (admission, config) = (Arc::new(Admission::default()), config());
        let one = [10, 0, 0, 1].into();
        let first = admission.handshake(one, &config);
        assert!(first.is_some() && admission.handshake(one, &config).is_none());
        drop(first);
        assert!(admission.handshake(one, &config).is_some());
        assert!(admission.sources().by_source.is_empty());
    }

    #[test]
    fn half_of_the_handshakes_are_for_others() {
        let (admission, mut config) = (Arc::new(Admission::default()), config());
        config.max_handshakes = 4;
        let (one, two) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let _of_one = [(); 2].map(|()| admission.handshake(one, &config).unwrap());
        assert!(admission.handshake(one, &config).is_none());
        let of_two = admission.handshake(two, &config).unwrap();
        drop(of_two);
        config.proxies.networks = vec!["10.0.0.1/32".parse().unwrap()];
        let _as_proxy = [(); 2].map(|()| admission.handshake(one, &config).unwrap());
        assert!(admission.handshake(one, &config).is_none() && admission.handshaking() == 4);
    }

    #[test]
    fn a_source_is_charged_over_all_its_connections_and_reconnecting_does_not_help() {
        let (admission, config) = (Arc::new(Admission::default()), config());
        let [here, there] = [caller("fd77::1"), caller("fd77::2")];
        let rate = Rate::new(3, 10_000, 1).unwrap();
        let one = admission.admit(here, None, &config).unwrap();
        assert!(one.charge_ping(rate) && one.charge_ping(rate));
        drop(one);
        let two = admission.admit(there, None, &config).unwrap();
        assert!(two.charge_ping(rate));
        assert!(!two.charge_ping(rate));
        assert!(two.charge_ping(Rate::default()));
    }

    #[test]
    fn sources_without_connections_are_forgotten() {
        let (admission, config) = (Arc::new(Admission::default()), config());
        for last in 0..100 {
            drop(admission.admit(caller(&format!("10.0.0.{last}")), Some("user"), &config));
        }
        assert!(admission.sources().by_source.is_empty());
        assert!(admission.sources().by_user.is_empty());
    }
}
