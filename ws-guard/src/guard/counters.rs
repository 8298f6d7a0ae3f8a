//! Counters of all CPUs, summed.
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray};
use ws_guard_common::maps::{Counters, name};

use super::{error::GuardError, plain::Raw};

pub struct CounterMap(PerCpuArray<MapData, Raw<Counters>>);

impl CounterMap {
    pub fn open(dir: &Path) -> Result<Self, GuardError> {
        let incompatible = |error: aya::maps::MapError| {
            GuardError::Incompatible(dir.into(), format!("{}: {error}", name::COUNTERS))
        };
        let map = MapData::from_pin(dir.join(name::COUNTERS)).map_err(incompatible)?;
        // The key size is checked by `Pins::check`, the value size here again.
        PerCpuArray::try_from(Map::PerCpuArray(map)).map(CounterMap).map_err(incompatible)
    }

    /// Return the sums; values that only make sense per CPU (event budget) are zero.
    pub fn sum(&self) -> Result<Box<Counters>, GuardError> {
        let values = self.0.get(&0, 0).map_err(|error| GuardError::Map {
            map: name::COUNTERS,
            operation: "look-up",
            source: std::io::Error::other(error),
        })?;
        let mut sum = Box::new(Counters::ZERO);
        for Raw(one) in values.iter() {
            add(&mut sum.events, &one.events);
            add(&mut sum.violations_in, &one.violations_in);
            add(&mut sum.violations_out, &one.violations_out);
        }
        Ok(sum)
    }
}

fn add(sum: &mut [u64], one: &[u64]) {
    for (sum, one) in sum.iter_mut().zip(one) {
        *sum = sum.wrapping_add(*one);
    }
}
