//! `ws-guard inspect --interface`: what goes over an interface now.

mod ring;

use std::{
    io::{self, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use ws_guard_inspect::{Inspector, ReadError, Totals};

use self::ring::{BLOCKS, RETIRE_MS, Ring};
use super::listing::Listing;

/// When to end.
struct End {
    signals: SignalFd,
    at: Option<Instant>,
}

impl End {
    /// SIGINT and SIGTERM no longer end the process, but its reading.
    fn new(seconds: Option<u64>) -> nix::Result<End> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        let at =
            seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        Ok(End { signals, at })
    }

    /// Wait for packets: `false` if it is to end instead.
    fn wait(&self, ring: &Ring) -> nix::Result<bool> {
        let left = self.at.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(false);
        }
        // Rounded up, for a time-out of 0 ms would spin.
        let left = left.map(|left| left + Duration::from_millis(1));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let both = [ring.as_fd(), self.signals.as_fd()];
        let mut both = both.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut both, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(!both[1].any().unwrap_or(false)),
            Err(error) => Err(error),
        }
    }
}

/// Inspect what goes over an interface until a signal comes, or the time is up.
pub fn inspect<'a>(
    interface: &str,
    seconds: Option<u64>,
    mut inspector: Inspector<Listing<'a>>,
) -> Result<(Listing<'a>, Totals)> {
    let end = End::new(seconds).context("waiting for signals")?;
    let mut ring = Ring::open(interface).map_err(|error| unopened(interface, error))?;
    // Standard error may be closed.
    let _ = writeln!(io::stderr(), "listening on {interface}, until Ctrl-C or --seconds");
    let mut loses = false;
    while end.wait(&ring).context("waiting for packets")? {
        // No more than there is at once: where packets come faster than they are read, it is to end too.
        for _ in 0..BLOCKS {
            if !ring.read(|packet| inspector.packet(packet)) {
                break;
            }
        }
        if !loses && dropped(&mut ring)? > 0 {
            loses = true;
            let _ = writeln!(
                io::stderr(),
                "{interface}: packets come too fast to be read: what is missing counts as gaps"
            );
        }
        inspector.visitor().flush();
        if inspector.visitor().has_failed() {
            break;
        }
    }
    // What the kernel has taken and not handed over yet. More may come all the time.
    let tail = Instant::now() + Duration::from_millis(2 * u64::from(RETIRE_MS));
    while Instant::now() < tail {
        if !ring.read(|packet| inspector.packet(packet)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let too_fast = dropped(&mut ring)?;
    if too_fast > 0 {
        let _ = writeln!(io::stderr(), "{interface}: {too_fast} packets came too fast to be read");
    }
    let (listing, mut totals) = inspector.end();
    totals.too_fast = too_fast;
    Ok((listing, totals))
}

fn dropped(ring: &mut Ring) -> Result<u64> {
    ring.dropped().context("reading what was dropped")
}

fn unopened(interface: &str, error: io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "capturing needs CAP_NET_RAW: run it as root",
        _ => "capturing from an interface: `ip link` lists those that there are",
    };
    anyhow::Error::from(ReadError::Open { name: interface.into(), error }).context(remedy)
}
