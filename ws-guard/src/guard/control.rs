//! Requests to the control program.
//!
//! Changes to a source need its spin lock, and only a kernel program can hold it and compute. So
//! the daemon passes the request to a program that is loaded with the others and never attached, as
//! the packet of a BPF_PROG_TEST_RUN.
use std::path::Path;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use ws_guard_common::maps::Request;

use super::error::GuardError;

/// Bytes that the kernel strips from a test packet as its Ethernet header.
const ETHERNET: usize = 14;
const PACKET: usize = ETHERNET + size_of::<Request>();

pub struct Control(SchedClassifier);

impl Control {
    /// # Errors
    /// When the program is not pinned at `path`, or may not be opened.
    pub fn open(path: &Path) -> Result<Self, GuardError> {
        SchedClassifier::from_pin(path)
            .map(Control)
            .map_err(|error| GuardError::Control(format!("{}: {error}", path.display())))
    }

    /// Run the program; return its answer, one of [`ws_guard_common::maps::answer`].
    pub fn run(&self, request: &Request) -> Result<u32, GuardError> {
        let packet = packet(request);
        let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::new() };
        match self.0.test_run(options) {
            Ok(result) => Ok(result.return_value),
            Err(error) => Err(GuardError::Control(error.to_string())),
        }
    }
}

/// Write an empty Ethernet header and the request's fields in host byte order.
fn packet(request: &Request) -> [u8; PACKET] {
    let words = request.source.address.0.map(u32::to_ne_bytes);
    let mut packet = [0; PACKET];
    let mut rest = &mut packet[ETHERNET..];
    for field in [
        request.operation.to_ne_bytes().as_slice(),
        &request.pings.to_ne_bytes(),
        &request.until.to_ne_bytes(),
        words.as_flattened(),
        &request.source.scope.to_ne_bytes(),
        &request._pad.to_ne_bytes(),
    ] {
        let (here, behind) = rest.split_at_mut(field.len());
        here.copy_from_slice(field);
        rest = behind;
    }
    packet
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use ws_guard_common::maps::{Address, SourceKey};

    use super::*;

    #[test]
    fn the_packet_holds_the_request_as_the_kernel_reads_it() {
        let source = SourceKey { address: Address([1, 2, 3, 4]), scope: 5 };
        let packet = packet(&Request { operation: 2, pings: 7, until: 1 << 40, source, _pad: 0 });
        let word = |offset: usize| {
            u32::from_ne_bytes(packet[ETHERNET + offset..][..4].try_into().unwrap())
        };
        assert_eq!(word(offset_of!(Request, operation)), 2);
        assert_eq!(word(offset_of!(Request, pings)), 7);
        let until = offset_of!(Request, until);
        assert_eq!(packet[ETHERNET + until..][..8], (1u64 << 40).to_ne_bytes());
        assert_eq!(word(offset_of!(Request, source) + 12), 4);
        assert_eq!(word(offset_of!(Request, source) + 16), 5);
    }
}
