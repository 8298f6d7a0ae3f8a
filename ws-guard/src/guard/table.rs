//! Typed map for use by several threads, and for reading in batches.
//!
//! aya's own map types require `&mut` for every write, and support neither batches (they make two
//! system calls per entry) nor look-ups under a spin lock; see [`super::sys`].
use std::{
    collections::HashSet,
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::maps::MapData;

use super::{
    error::GuardError,
    plain::Plain,
    sys::{self, Batch, BatchBuffers},
};

/// Entries requested at once; 3 MB of flows.
const BATCH: u32 = 4096;
/// ENOTSUPP of kernel/bpf, not in errno.h: the map type does not support batches.
const ENOTSUPP: i32 = 524;

/// Map from `K` to `V`; their sizes were compared with the kernel's on opening.
pub struct Table<K, V> {
    map: MapData,
    name: &'static str,
    max_entries: u32,
    /// [`sys::F_LOCK`] if values contain a spin lock: then each is read whole.
    flags: u64,
    entry: PhantomData<fn() -> (K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// # Errors
    /// Details for `Incompatible` as text when key or value size differ from `K`'s and `V`'s.
    pub fn new(map: MapData, name: &'static str, flags: u64) -> Result<Self, String> {
        let info = map.info().map_err(|error| format!("{name}: {error}"))?;
        for (what, found, wanted) in
            [("key", info.key_size(), size_of::<K>()), ("value", info.value_size(), size_of::<V>())]
        {
            if found as usize != wanted {
                return Err(format!("{name} has a {what} size of {found} bytes, not {wanted}"));
            }
        }
        Ok(Table { map, name, max_entries: info.max_entries(), flags, entry: PhantomData })
    }

    /// Open a pinned map.
    pub fn open(dir: &Path, name: &'static str, flags: u64) -> Result<Self, GuardError> {
        let incompatible = |reason| GuardError::Incompatible(dir.into(), reason);
        let map = MapData::from_pin(dir.join(name))
            .map_err(|error| incompatible(format!("{name}: {error}")))?;
        Table::new(map, name, flags).map_err(incompatible)
    }

    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, GuardError> {
        // SAFETY: `new` compared the sizes; `Plain` values may be any bytes.
        unsafe { sys::lookup(self.fd(), key, self.flags) }.map_err(self.error("look-up"))
    }

    /// Insert or replace the entry.
    pub fn insert(&self, key: &K, value: &V) -> Result<(), GuardError> {
        // SAFETY: `new` compared the sizes.
        unsafe { sys::update(self.fd(), key, value) }.map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => {
                GuardError::MapFull { map: self.name, max_entries: self.max_entries }
            }
            _ => self.error("update")(error),
        })
    }

    /// Remove the entry; return whether there was one.
    pub fn remove(&self, key: &K) -> Result<bool, GuardError> {
        // SAFETY: `new` compared the sizes.
        unsafe { sys::delete(self.fd(), key) }.map_err(self.error("removal"))
    }

    /// Remove the entries of these keys; one that is added meanwhile may stay.
    pub fn remove_where(&self, mut gone: impl FnMut(&K) -> bool) -> Result<(), GuardError> {
        let mut keys = Vec::new();
        self.each_batch(0, |batch, _| keys.extend(batch.iter().copied().filter(&mut gone)))?;
        keys.iter().try_for_each(|key| self.remove(key).map(drop))
    }

    /// Return all entries; one added or removed meanwhile may or may not be among them.
    pub fn entries(&self) -> Result<Vec<(K, V)>, GuardError> {
        let mut entries = Vec::new();
        self.each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Visit all entries one by one, in memory for one batch, for any table size.
    pub fn each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), GuardError> {
        self.each_batch(self.flags, |keys, values| {
            keys.iter().zip(values).for_each(|(key, value)| visit(key, value));
        })
    }

    /// Count the entries.
    /// The kernel keeps no such number: they are read, without locks and without keeping any.
    pub fn count(&self) -> Result<u32, GuardError> {
        let mut count = 0;
        self.each_batch(0, |keys, _| count += keys.len())?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn each_batch(&self, flags: u64, mut visit: impl FnMut(&[K], &[V])) -> Result<(), GuardError> {
        let mut capacity = BATCH.min(self.max_entries.max(1));
        let (mut keys, mut values) = (Vec::<K>::new(), Vec::<V>::new());
        let mut position = Vec::new();
        let mut begun = false;
        loop {
            keys.clear();
            values.clear();
            keys.reserve_exact(capacity as usize);
            values.reserve_exact(capacity as usize);
            let buffers = BatchBuffers {
                keys: keys.as_mut_ptr(),
                values: values.as_mut_ptr(),
                count: capacity,
            };
            // SAFETY: `new` compared the sizes; both vectors have room for `capacity` entries.
            let batch = unsafe { sys::lookup_batch(self.fd(), &mut position, &buffers, flags) };
            let (count, last) = match batch {
                Ok(Batch::More(count)) => (count, false),
                Ok(Batch::Last(count)) => (count, true),
                Ok(Batch::TooSmall) if capacity < self.max_entries => {
                    capacity = capacity.saturating_mul(2).min(self.max_entries);
                    continue;
                }
                Ok(Batch::TooSmall) => {
                    let full = io::Error::from_raw_os_error(libc::ENOSPC);
                    return Err(self.error("batch look-up")(full));
                }
                // Kernels before 5.6, and map types without batches.
                Err(error)
                    if !begun && matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) =>
                {
                    return self.each_entry(flags, visit);
                }
                Err(error) => return Err(self.error("batch look-up")(error)),
            };
            begun = true;
            let count = count.min(capacity as usize);
            // SAFETY: the kernel has written `count` keys and values, not more than there is room
            // for, and `Plain` values may be any bytes.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            visit(&keys, &values);
            if last {
                return Ok(());
            }
        }
    }

    /// Visit without batches: two system calls per entry.
    /// If the current entry is removed, the kernel restarts at the first; nothing is visited twice.
    fn each_entry(&self, flags: u64, mut visit: impl FnMut(&[K], &[V])) -> Result<(), GuardError> {
        let mut seen = HashSet::new();
        let mut key: Option<K> = None;
        for _ in 0..self.max_entries.saturating_mul(4) {
            // SAFETY: `new` compared the sizes.
            let next = unsafe { sys::next_key(self.fd(), key.as_ref()) };
            let Some(next) = next.map_err(self.error("iteration"))? else { return Ok(()) };
            // SAFETY: `K` is plain and initialised; its bytes live as long as the borrow.
            let bytes = unsafe {
                std::slice::from_raw_parts((&raw const next).cast::<u8>(), size_of::<K>())
            };
            if seen.insert(bytes.to_vec()) {
                // SAFETY: `new` compared the sizes; `Plain` values may be any bytes.
                let value = unsafe { sys::lookup::<K, V>(self.fd(), &next, flags) };
                if let Some(value) = value.map_err(self.error("look-up"))? {
                    visit(&[next], &[value]);
                }
            }
            key = Some(next);
        }
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }

    fn error(&self, operation: &'static str) -> impl FnOnce(io::Error) -> GuardError + use<K, V> {
        let map = self.name;
        move |source| GuardError::Map { map, operation, source }
    }
}
