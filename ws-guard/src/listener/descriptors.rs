//! Limit of open files, and its effect on the number of connections.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ws_guard_server::Config;

/// Descriptors reserved for other uses: control, metrics, logs, pins and maps.
pub const RESERVED: u64 = 512;

/// Numbers of connections and handshakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    connections: usize,
    handshakes: usize,
}

/// Raise the limit of open files as needed and allowed.
/// If it is too low, lower the number of connections: those over it are answered as documented, and
/// control always has a descriptor.
pub fn back(config: &mut Config) {
    let wanted = Places { connections: config.max_connections, handshakes: config.max_handshakes };
    let needed = RESERVED + (wanted.connections as u64).saturating_add(wanted.handshakes as u64);
    let limit = raise(needed);
    let places = fit(wanted, limit);
    if places != wanted {
        tracing::warn!(
            "this process may open {limit} files, and {needed} are needed for {} connections: {} are accepted, the others get 503. Raise the limit (LimitNOFILE= of systemd, ulimit -Hn, --ulimit nofile= of the container), or lower --max-connections",
            wanted.connections,
            places.connections,
        );
    }
    (config.max_connections, config.max_handshakes) = (places.connections, places.handshakes);
}

/// Raise the limit towards `needed`, as far as the hard limit; return the result.
pub fn raise(needed: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return u64::MAX };
    let wanted = needed.min(hard);
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}

/// Fit the numbers to the descriptors. Handshakes are short: a quarter at most.
fn fit(wanted: Places, limit: u64) -> Places {
    let free = limit.saturating_sub(RESERVED.min(limit / 2));
    let free = usize::try_from(free).unwrap_or(usize::MAX);
    if wanted.connections.saturating_add(wanted.handshakes) <= free {
        return wanted;
    }
    let handshakes = wanted.handshakes.min(free / 4).max(1);
    let connections = wanted.connections.min(free.saturating_sub(handshakes)).max(1);
    Places { connections, handshakes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_what_the_limit_has_room_for() {
        let wanted = Places { connections: 16_384, handshakes: 1024 };
        let fitted = |limit| {
            let places = fit(wanted, limit);
            (places.connections, places.handshakes)
        };
        assert_eq!(fitted(16_384 + 1024 + 512), (16_384, 1024));
        assert_eq!(fitted(4096), (2688, 896));
        assert_eq!(fitted(1024), (384, 128));
        assert_eq!(fitted(256), (96, 32));
        for limit in 0..20_000 {
            let (connections, handshakes) = fitted(limit);
            assert!(limit < 8 || connections + handshakes < limit as usize, "{limit}");
        }
    }
}
