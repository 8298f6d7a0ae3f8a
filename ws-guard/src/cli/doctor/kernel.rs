//! Checks of the kernel: version, BTF, helpers, JIT, privileges, file system.

use std::{fs, path::Path};

use aya::{programs::ProgramInfo, sys::is_helper_supported, util::KernelVersion};

use super::Check;
use crate::guard::{
    is_bpffs,
    kernel::{HELPERS, Helper, OLDEST, TCX, series, too_old},
    missing_capabilities,
};

/// Check the kernel for a guard that pins in `pin_dir`.
pub fn checks(pin_dir: &Path) -> Vec<Check> {
    let mut checks =
        vec![version(), tcx(), btf(), capabilities(pin_dir), bpffs(pin_dir), jit(pin_dir)];
    checks.extend(HELPERS.iter().map(helper));
    checks
}

fn version() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let remedy = format!("run Linux {} or later", series(OLDEST));
    match KernelVersion::current() {
        Ok(version) => judge(version, release.trim(), remedy),
        Err(error) => Check::warn("kernel", error.to_string(), remedy),
    }
}

/// Judge the kernel's version: missing features fail, an untested version does not.
fn judge(version: KernelVersion, release: &str, remedy: String) -> Check {
    match too_old(version) {
        None => Check::ok("kernel", format!("{release} (oldest supported: {})", series(OLDEST))),
        Some(why) if HELPERS.iter().any(|helper| version < helper.since) => {
            Check::fail("kernel", format!("{release}: {why}"), remedy)
        }
        Some(why) => Check::warn("kernel", format!("{release}: {why}"), remedy),
    }
}

fn tcx() -> Check {
    let there = KernelVersion::current().is_ok_and(|version| version >= TCX);
    let finding = match there {
        true => "supported".to_owned(),
        false => format!("not before Linux {}: clsact is used in its place", series(TCX)),
    };
    Check::ok("tcx", finding)
}

fn btf() -> Check {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    match path.exists() {
        true => Check::ok("btf", path.display().to_string()),
        false => Check::warn(
            "btf",
            format!("{} is not there", path.display()),
            "run a kernel built with CONFIG_DEBUG_INFO_BTF: spin locks in maps need it",
        ),
    }
}

fn capabilities(pin_dir: &Path) -> Check {
    let missing = missing_capabilities(pin_dir);
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    match missing.is_empty() {
        true => Check::ok("capabilities", "all there"),
        false => Check::fail(
            "capabilities",
            format!("missing {}", missing.join(", ")),
            "run as root, or give them with setcap or AmbientCapabilities=",
        ),
    }
}

fn bpffs(pin_dir: &Path) -> Check {
    match is_bpffs(pin_dir) {
        true => Check::ok("bpffs", pin_dir.display().to_string()),
        false => Check::warn(
            "bpffs",
            format!("{} is not on one", pin_dir.display()),
            "`run` mounts it at /sys/fs/bpf when it may; else run `mount -t bpf bpf /sys/fs/bpf`. After `ip netns exec` use `nsenter --net=` instead, which leaves /sys alone",
        ),
    }
}

fn jit(pin_dir: &Path) -> Check {
    let setting = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok();
    judge_jit(setting.map(|text| text.trim() != "0").or_else(|| is_compiled(pin_dir)))
}

/// Check whether the guard's own program was compiled, where there is one.
fn is_compiled(pin_dir: &Path) -> Option<bool> {
    let program = ProgramInfo::from_pin(pin_dir.join("programs/ws_guard_control")).ok()?;
    Some(program.size_jitted() > 0)
}

/// Judge the JIT's setting. Most containers cannot see it, which is no problem.
fn judge_jit(on: Option<bool>) -> Check {
    match on {
        Some(false) => Check::warn(
            "jit",
            "off: programs are interpreted, many times slower",
            "run `sysctl net.core.bpf_jit_enable=1`",
        ),
        Some(true) => Check::ok("jit", "on"),
        None => Check::ok("jit", "unknown: its setting is not visible here"),
    }
}

fn helper(helper: &Helper) -> Check {
    match is_helper_supported(helper.caller, helper.helper) {
        Ok(true) => Check::ok(helper.name, "supported"),
        Ok(false) => {
            let remedy = format!(
                "run Linux {} or later (it came with {})",
                series(OLDEST),
                series(helper.since)
            );
            Check::fail(helper.name, "not supported", remedy)
        }
        Err(error) => {
            Check::warn(helper.name, error.to_string(), "run doctor with the capabilities above")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn only_a_jit_that_is_off_is_a_warning() {
        let verdicts = [Some(false), Some(true), None].map(|on| judge_jit(on).verdict);
        assert_eq!(verdicts, [Verdict::Warn, Verdict::Ok, Verdict::Ok]);
    }

    #[test]
    fn a_kernel_that_lacks_something_fails_and_an_untried_one_warns() {
        let verdict = |major, minor| {
            judge(KernelVersion::new(major, minor, 0), "x", "run another".into()).verdict
        };
        assert_eq!(verdict(6, 1), Verdict::Ok);
        assert_eq!(verdict(6, 0), Verdict::Warn);
        assert_eq!(verdict(5, 15), Verdict::Fail);
    }
}
