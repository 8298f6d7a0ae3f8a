//! The kernel: version, BTF, helpers, JIT, privileges, file system.

use std::{fs, path::Path};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
    util::KernelVersion,
};

use super::Check;
use crate::guard::{BPFFS_MOUNT_POINT, is_bpffs, missing_capabilities};

/// The oldest kernel with all that the programs want: XDP in several buffers is of 5.18.
const OLDEST: KernelVersion = KernelVersion::new(5, 18, 0);

/// What the programs call, and the kernel that brought it.
const HELPERS: [(ProgramType, BpfHelper, &str, &str); 5] = [
    (ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_load_bytes, "bpf_xdp_load_bytes", "5.18"),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop, "bpf_loop", "5.17"),
    (
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_for_each_map_elem,
        "bpf_for_each_map_elem",
        "5.13",
    ),
    (
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        "bpf_ktime_get_coarse_ns",
        "5.11",
    ),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_ringbuf_output, "bpf_ringbuf_output", "5.8"),
];

pub fn checks() -> Vec<Check> {
    let mut checks = vec![version(), btf(), capabilities(), bpffs(), jit()];
    checks.extend(HELPERS.iter().map(|helper| self::helper(*helper)));
    checks
}

fn version() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match KernelVersion::current() {
        Ok(version) if version >= OLDEST => Check::ok("kernel", release),
        Ok(_) => Check::fail("kernel", release, "run Linux 5.18 or later (TCX: 6.6)"),
        Err(error) => Check::warn("kernel", error.to_string(), "run Linux 5.18 or later"),
    }
}

fn btf() -> Check {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    match path.exists() {
        true => Check::ok("btf", path.display().to_string()),
        false => Check::warn(
            "btf",
            format!("{} is not there", path.display()),
            "run a kernel built with CONFIG_DEBUG_INFO_BTF: spin locks in maps want it",
        ),
    }
}

fn capabilities() -> Check {
    let missing: Vec<String> = missing_capabilities().iter().map(ToString::to_string).collect();
    match missing.is_empty() {
        true => Check::ok("capabilities", "all there"),
        false => Check::fail(
            "capabilities",
            format!("missing {}", missing.join(", ")),
            "run as root, or give them with setcap or AmbientCapabilities=",
        ),
    }
}

fn bpffs() -> Check {
    match is_bpffs(Path::new(BPFFS_MOUNT_POINT)) {
        true => Check::ok("bpffs", BPFFS_MOUNT_POINT),
        false => Check::warn(
            "bpffs",
            format!("none at {BPFFS_MOUNT_POINT}"),
            "`run` mounts it when it may; else run `mount -t bpf bpf /sys/fs/bpf`. After `ip netns exec` use `nsenter --net=` instead, which leaves /sys alone",
        ),
    }
}

fn jit() -> Check {
    let path = "/proc/sys/net/core/bpf_jit_enable";
    match fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("0") => Check::warn(
            "jit",
            "off: programs are interpreted, many times slower",
            "run `sysctl net.core.bpf_jit_enable=1`",
        ),
        Ok(_) => Check::ok("jit", "on"),
        Err(error) => Check::warn("jit", format!("{path}: {error}"), "look for yourself"),
    }
}

fn helper((kind, helper, name, since): (ProgramType, BpfHelper, &str, &str)) -> Check {
    match is_helper_supported(kind, helper) {
        Ok(true) => Check::ok(name, "supported"),
        Ok(false) => Check::fail(name, "not supported", format!("run Linux {since} or later")),
        Err(error) => {
            Check::warn(name, error.to_string(), "run doctor with the capabilities above")
        }
    }
}
