//! Checks of one interface: existence, driver, XDP, offloads that matter.

use super::{
    Check,
    ethtool::{ETHTOOL_GFLAGS, ETHTOOL_GGRO, ETHTOOL_GTXCSUM, Ethtool, FLAG_LRO},
};
use crate::guard::{Attachment, Mode, Role, interfaces::Interface};

pub fn checks(name: &str, attachments: &[Attachment]) -> Vec<Check> {
    let interface = match Interface::find(name) {
        Ok(interface) => interface,
        Err(error) => {
            let remedy =
                "list them with `ip link`; `run` waits for those of a pattern, such as 'eth*'";
            return vec![Check::fail(format!("{name} exists"), error.to_string(), remedy)];
        }
    };
    let attachment = attachments.iter().find(|attachment| attachment.name == name);
    let mut checks =
        vec![Check::ok(format!("{name} exists"), format!("index {}", interface.index))];
    match Ethtool::new(name) {
        Ok(ethtool) => {
            checks.push(driver(name, &ethtool));
            checks.push(mtu(name, &ethtool));
            checks.extend(offloads(name, &ethtool));
        }
        Err(error) => checks.push(Check::warn(name, error.to_string(), "see `ethtool -i`")),
    }
    match attachment {
        // XDP would see there what the server sends.
        Some(pod) if pod.role == Role::Pod => checks.push(pod_hooks(pod)),
        _ => checks.push(xdp(&interface, attachment)),
    }
    checks
}

fn pod_hooks(pod: &Attachment) -> Check {
    let mode = |mode: Option<Mode>| mode.map_or("nothing", Mode::name);
    let finding =
        format!("a pod's: {} on ingress, {} on egress", mode(pod.ingress), mode(pod.egress));
    Check::ok(format!("{} hooks", pod.name), finding)
}

fn driver(name: &str, ethtool: &Ethtool) -> Check {
    let check = format!("{name} driver");
    match ethtool.driver() {
        Ok(driver) => Check::ok(check, driver),
        Err(error) => Check::warn(
            check,
            format!("unknown ({error})"),
            "an interface without one, such as lo, has generic XDP only",
        ),
    }
}

fn mtu(name: &str, ethtool: &Ethtool) -> Check {
    let check = format!("{name} mtu");
    match ethtool.mtu() {
        Ok(mtu) => Check::ok(check, mtu.to_string()),
        Err(error) => Check::warn(check, error.to_string(), "see `ip link`"),
    }
}

fn offloads(name: &str, ethtool: &Ethtool) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Ok(flags) = ethtool.value(ETHTOOL_GFLAGS) {
        let check = format!("{name} lro");
        checks.push(match flags & FLAG_LRO != 0 {
            true => Check::warn(
                check,
                "on: many drivers refuse native XDP with it",
                format!("run `ethtool -K {name} lro off`"),
            ),
            false => Check::ok(check, "off"),
        });
    }
    let state = |value| if value == 0 { "off" } else { "on" };
    if let Ok(gro) = ethtool.value(ETHTOOL_GGRO) {
        checks.push(Check::ok(format!("{name} gro"), state(gro)));
    }
    if let Ok(sums) = ethtool.value(ETHTOOL_GTXCSUM) {
        checks.push(Check::ok(format!("{name} tx checksums"), state(sums)));
    }
    checks
}

fn xdp(interface: &Interface, attachment: Option<&Attachment>) -> Check {
    let check = format!("{} xdp", interface.name);
    match attachment.and_then(|attachment| attachment.ingress) {
        Some(mode @ Mode::XdpNative) => {
            return Check::ok(check, format!("attached, {}", mode.name()));
        }
        Some(mode) => {
            let finding = format!("attached, {}: slower than native", mode.name());
            let remedy = "nothing is wrong; a driver with XDP, a smaller MTU or a free slot would make it faster";
            return Check::warn(check, finding, remedy);
        }
        None => {}
    }
    match interface.xdp_program() {
        Ok(None) => {
            Check::ok(check, "slot free; whether the driver supports it shows on attaching")
        }
        Ok(Some(program)) => Check::warn(
            check,
            format!("slot taken by {program}"),
            "leave --attach auto, which takes TCX then, or detach it with `ip link set dev IF xdp off`",
        ),
        Err(error) => Check::warn(check, error.to_string(), "see `ip -d link`"),
    }
}
