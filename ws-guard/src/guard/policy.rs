//! The policy in force, changed whole.
//!
//! The kernel programs read [`name::ACTIVE`] and then that slot of [`name::POLICY`]. A change writes
//! the other slot and then switches, so a packet sees the old policy or the new one, never a mix.
use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ws_guard_common::maps::{Policy, name};

use super::{error::GuardError, maps::open, table::Table};

/// A CPU that read the old slot's index may still be reading the slot: programs run with preemption
/// or interrupts on for microseconds, never for as long as this.
const GRACE: Duration = Duration::from_millis(10);

pub struct PolicyMaps {
    slots: Table<u32, Policy>,
    active: Table<u32, u32>,
    /// Serialises writers; when the slots were last switched.
    switched: Mutex<Instant>,
}

/// The right to change the policy, held over a whole read-change-write.
pub struct PolicyWriter<'a> {
    maps: &'a PolicyMaps,
    switched: MutexGuard<'a, Instant>,
}

impl PolicyMaps {
    pub fn open(dir: &Path) -> Result<Self, GuardError> {
        Ok(PolicyMaps {
            slots: open(dir, name::POLICY, 0)?,
            active: open(dir, name::ACTIVE, 0)?,
            // Another process may have switched just before.
            switched: Mutex::new(Instant::now()),
        })
    }

    /// The policy in force.
    pub fn get(&self) -> Result<Policy, GuardError> {
        loop {
            let active = self.active()?;
            let policy = self.slots.get(&active)?.unwrap_or_default();
            if self.active()? == active {
                return Ok(policy);
            }
        }
    }

    pub fn writer(&self) -> PolicyWriter<'_> {
        // A writer that panicked has switched or has not: the slots are whole either way.
        let switched = self.switched.lock().unwrap_or_else(PoisonError::into_inner);
        PolicyWriter { maps: self, switched }
    }

    fn active(&self) -> Result<u32, GuardError> {
        Ok(self.active.get(&0)?.unwrap_or_default() & 1)
    }
}

impl PolicyWriter<'_> {
    /// Put what `change` makes of the policy in force in force. Waits up to 10 ms after the
    /// previous change.
    pub fn change(&mut self, change: impl FnOnce(&mut Policy)) -> Result<(), GuardError> {
        thread::sleep(GRACE.saturating_sub(self.switched.elapsed()));
        let mut policy = self.maps.get()?;
        change(&mut policy);
        let other = 1 - self.maps.active()?;
        self.maps.slots.insert(&other, &policy)?;
        self.maps.active.insert(&0, &other)?;
        *self.switched = Instant::now();
        Ok(())
    }
}
