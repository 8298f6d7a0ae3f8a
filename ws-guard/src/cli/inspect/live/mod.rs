//! `ws-guard inspect --interface`: the current traffic of an interface.

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

/// End of a live inspection: a signal, or a time limit.
struct End {
    signals: SignalFd,
    at: Option<Instant>,
}

impl End {
    /// Block SIGINT and SIGTERM, so that they end the reading and not the process.
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

    /// Wait for packets; return `false` at the end.
    fn wait(&self, ring: &Ring) -> nix::Result<bool> {
        let left = self.at.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(false);
        }
        // Rounded up: a time-out of 0 ms would spin.
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

/// Inspect an interface's traffic until a signal arrives or the time is up.
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
        // At most one ring: the end is noticed even if packets arrive faster than they are read.
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
    // Packets that the kernel has received but not handed over. More may arrive all the time.
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
