//! Events of the kernel programs, from the ring buffer to a channel.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use aya::maps::{Map, MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
    sync::mpsc::{self, error::TrySendError},
};
use ws_guard_common::maps::{Event, name};

use super::{error::GuardError, pins::Pins, plain};

/// Capacity of the channel: several seconds at the kernel's maximum rate.
const CAPACITY: usize = 4096;

/// Start a task that reads until the receiver is dropped.
/// Events that find the channel full are added to `dropped`.
///
/// # Errors
/// [`GuardError::Events`] when the buffer cannot be opened, or outside a tokio runtime.
pub fn read(pins: &Pins, dropped: Arc<AtomicU64>) -> Result<mpsc::Receiver<Event>, GuardError> {
    let failed = |error: &dyn std::fmt::Display| GuardError::Events(error.to_string());
    let runtime = Handle::try_current().map_err(|error| failed(&error))?;
    let map = MapData::from_pin(pins.map(name::EVENTS)).map_err(|error| failed(&error))?;
    let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(|error| failed(&error))?;
    let _entered = runtime.enter();
    // SAFETY: the value owns its descriptor and gives the same one for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    let ring = registered.map_err(|error| failed(&error))?;
    let (sender, receiver) = mpsc::channel(CAPACITY);
    runtime.spawn(forward(ring, sender, dropped));
    Ok(receiver)
}

async fn forward(
    mut ring: AsyncFd<RingBuf<MapData>>,
    sender: mpsc::Sender<Event>,
    dropped: Arc<AtomicU64>,
) {
    loop {
        let mut ready = tokio::select! {
            () = sender.closed() => return,
            ready = ring.readable_mut() => match ready {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "can no longer read the kernel's events");
                    return;
                }
            },
        };
        while let Some(record) = ready.get_inner_mut().next() {
            let Some(event) = plain::from_bytes::<Event>(&record) else {
                tracing::warn!(length = record.len(), "skipped an event of unknown length");
                continue;
            };
            match sender.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    dropped.fetch_add(1, Relaxed);
                }
                Err(TrySendError::Closed(_)) => return,
            }
        }
        ready.clear_ready();
    }
}
