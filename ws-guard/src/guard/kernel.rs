//! Kernels that the guard runs on.
use aya::{
    programs::ProgramType::{self, SchedClassifier, Xdp},
    sys::BpfHelper,
    util::KernelVersion,
};

/// Oldest supported kernel: every test run boots it, and loads the programs on it.
pub const OLDEST: KernelVersion = KernelVersion::new(6, 1, 0);
/// First kernel with TCX; older ones use clsact.
pub const TCX: KernelVersion = KernelVersion::new(6, 6, 0);

/// Helper that the programs call.
#[derive(Clone, Copy)]
pub struct Helper {
    pub helper: BpfHelper,
    pub name: &'static str,
    /// Type of the program that calls it.
    pub caller: ProgramType,
    /// First kernel with the helper.
    pub since: KernelVersion,
}

const fn helper(
    helper: BpfHelper,
    name: &'static str,
    caller: ProgramType,
    (major, minor): (u8, u8),
) -> Helper {
    Helper { helper, name, caller, since: KernelVersion::new(major, minor, 0) }
}

/// Helpers that the programs call, newest first.
pub const HELPERS: [Helper; 5] = [
    helper(BpfHelper::BPF_FUNC_xdp_load_bytes, "bpf_xdp_load_bytes", Xdp, (5, 18)),
    helper(BpfHelper::BPF_FUNC_loop, "bpf_loop", SchedClassifier, (5, 17)),
    helper(
        BpfHelper::BPF_FUNC_for_each_map_elem,
        "bpf_for_each_map_elem",
        SchedClassifier,
        (5, 13),
    ),
    helper(
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        "bpf_ktime_get_coarse_ns",
        SchedClassifier,
        (5, 11),
    ),
    helper(BpfHelper::BPF_FUNC_ringbuf_output, "bpf_ringbuf_output", SchedClassifier, (5, 8)),
];

/// Return an objection to a kernel of this version, or `None` if it is supported.
/// It may lack features, or be untested.
pub fn too_old(version: KernelVersion) -> Option<String> {
    if version >= OLDEST {
        return None;
    }
    let older = format!("older than Linux {}, the oldest that is supported", series(OLDEST));
    let missing = HELPERS.iter().filter(|helper| version < helper.since);
    let missing: Vec<String> =
        missing.map(|helper| format!("{} ({})", helper.name, series(helper.since))).collect();
    Some(match missing.is_empty() {
        true => older,
        false => format!("{older}; it lacks {}", missing.join(", ")),
    })
}

/// Format as in `6.1`.
pub fn series(version: KernelVersion) -> String {
    let code = version.code();
    format!("{}.{}", code >> 16, code >> 8 & 0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        assert_eq!(too_old(KernelVersion::new(6, 1, 0)), None);
        assert_eq!(too_old(KernelVersion::new(6, 18, 44)), None);
        let untested = too_old(KernelVersion::new(6, 0, 9)).expect("older than 6.1");
        assert!(untested.contains("6.1") && !untested.contains("lacks"), "{untested}");
        let debian_11 = too_old(KernelVersion::new(5, 10, 0)).expect("older than 6.1");
        for part in ["bpf_loop (5.17)", "bpf_ktime_get_coarse_ns (5.11)", "6.1"] {
            assert!(debian_11.contains(part), "{debian_11} lacks {part}");
        }
        assert!(!debian_11.contains("ringbuf"), "5.10 has it: {debian_11}");
    }

    #[test]
    fn no_helper_is_newer_than_the_oldest_kernel() {
        assert!(HELPERS.iter().all(|helper| helper.since <= OLDEST));
    }
}
