//! Types that may be read from and written to maps as bytes.
use ws_guard_common::{
    flow::Flow,
    forwarded::names::HeaderNames,
    maps::{
        Address, Counters, Event, FlowKey, Midstream, Network, Pending, Policy, Ports, Rule,
        Server, ServerKey, SourceKey, Suspect, Tunnels, Unopened,
    },
    out_of_order::Held,
    pages::Page,
    source::Source,
};

/// Key of the tries: the number of significant bits, and the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixKey {
    /// 32 for the family, and 0 to 128; an IPv4 prefix counts the 96 bits before it.
    pub bits: u32,
    pub network: Network,
}

/// Type that is exchanged with the kernel as bytes.
///
/// # Safety
/// `repr(C)`, integers and arrays of integers only: every pattern of bytes is a valid value.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),+ $(,)?) => {
        // SAFETY: each is `repr(C)` (or primitive) and made of integers, all the way down.
        $(unsafe impl Plain for $type {})+
    };
}

plain!(
    u32,
    Address,
    Counters,
    Event,
    Flow,
    FlowKey,
    HeaderNames,
    Held,
    Network,
    Page,
    Pending,
    Policy,
    Ports,
    PrefixKey,
    Rule,
    Server,
    ServerKey,
    Source,
    SourceKey,
    Midstream,
    Suspect,
    Tunnels,
    Unopened
);

/// Wrapper for aya's typed maps: `Pod` cannot be implemented for foreign types.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: `Plain` guarantees what `Pod` requires, and the wrapper is transparent.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}

/// Read a value from `bytes`, if the length is right.
pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is checked, any bytes are a valid `T`, and the read needs no alignment.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_values_only_at_the_right_length() {
        assert_eq!(from_bytes::<u32>(&7u32.to_ne_bytes()), Some(7));
        assert_eq!(from_bytes::<u32>(&[0; 3]), None);
        assert_eq!(from_bytes::<u32>(&[0; 5]), None);
        // Unaligned, as records of a ring buffer with a header of another size would be.
        let padded = [0, 1, 0, 0, 0];
        assert_eq!(from_bytes::<u32>(&padded[1..]), Some(u32::from_ne_bytes([1, 0, 0, 0])));
    }
}
