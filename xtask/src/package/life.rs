//! Life cycle of the package: installed, upgraded, removed under a flood.
//! It runs under systemd.
use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use ws_guard_testkit::{
    netns::{Family, INTERFACE, Pair, PairOptions},
    servers::{Library, Server},
};

use super::machine::Machine;
use crate::{
    k8s::traffic::{self, Clients},
    setup,
};

/// Port of the protected server.
/// It is not the companion server, which limits pings itself.
const PORT: u16 = 8090;
const HONEST: u8 = 5;
/// Default limit: pings in any ten seconds.
const LIMIT: u64 = 30;
/// Duration of the flood before and after the upgrade.
const WHILE: Duration = Duration::from_secs(3);

/// Install the package `older`, upgrade to `package`, and remove it.
pub fn test(older: &Path, package: &Path) -> Result<()> {
    let pair = Pair::new(PairOptions { clients: HONEST + 2, ..PairOptions::default() })?;
    let machine = Machine::boot(&pair.server, &[older, package])?;
    setup::demo(Library::Gorilla)?;
    let _server = Server::start(&pair.server, Library::Gorilla, PORT, None)?;
    let name = |package: &Path| {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        format!("/root/{name}")
    };
    let install = |package: &Path| machine.run(&format!("dpkg --install {}", name(package)));

    install(older)?;
    ensure!(state(&machine, "ws-guard")? == "inactive", "started without a configuration");
    let manuals = machine.run("ls /usr/share/man/man1/ws-guard*.1.gz | wc -l")?;
    ensure!(manuals.trim().parse::<u32>()? > 10, "{manuals} manual pages");
    configure(&machine)?;
    machine.run("systemctl start ws-guard ws-guard-server")?;
    machine.eventually("the guard is ready", |machine| {
        Ok(machine.output("ws-guard status")?.contains(INTERFACE))
    })?;
    ensure!(state(&machine, "ws-guard-server")? == "active", "the companion server does not run");
    println!("{}: installed, guard and server run", version(&machine)?);

    let clients = clients(&pair)?;
    let pid = machine.run("systemctl show --property MainPID --value ws-guard")?;
    let (_, honest, flooded) = traffic::flood_during(clients, || {
        std::thread::sleep(WHILE);
        install(package)?;
        std::thread::sleep(WHILE);
        Ok(())
    })?;
    let now = machine.run("systemctl show --property MainPID --value ws-guard")?;
    ensure!(now != pid && now.trim() != "0", "the upgrade did not restart the guard");
    println!("{}: upgraded; {honest}", version(&machine)?);
    println!("flooder: {} of {} pings answered", flooded.answered, flooded.pings);
    ensure!(honest.all_served(), "{honest}");
    ensure!(flooded.answered <= LIMIT && flooded.pings > LIMIT, "{flooded:?}");

    let said = machine.run("dpkg --remove ws-guard 2>&1")?;
    // The kernel has two files of its own there.
    let left = machine.run("find /sys/fs/bpf -mindepth 1 ! -name '*.debug'")?;
    ensure!(left.is_empty(), "pins are left:\n{left}{said}");
    let links = machine.run("ip -details link show")?;
    ensure!(!links.contains("xdp"), "a program is left on an interface:\n{links}");
    machine.run("dpkg --purge ws-guard")?;
    machine.run("! test -e /var/lib/ws-guard && ! test -e /usr/bin/ws-guard")?;
    println!("removed and purged; nothing is left in the kernel");
    Ok(())
}

fn state(machine: &Machine, unit: &str) -> Result<String> {
    Ok(machine.output(&format!("systemctl is-active {unit}"))?.trim().to_owned())
}

fn version(machine: &Machine) -> Result<String> {
    machine.run("dpkg-query --show --showformat '${Package} ${Version}' ws-guard")
}

/// Write the shipped example, with this network's interface, and enforcing.
fn configure(machine: &Machine) -> Result<()> {
    let example = "/usr/share/doc/ws-guard/examples/guard.toml";
    machine.run(&format!(
        "mkdir -p /etc/ws-guard && sed -e s/eth0/{INTERFACE}/ -e s/8080/{PORT}/ -e s/observe/defuse/ {example} \
         > /etc/ws-guard/guard.toml"
    ))?;
    Ok(())
}

fn clients(pair: &Pair) -> Result<Clients> {
    let to = (Family::V4.server(), PORT).into();
    let honest: Vec<_> = (1..=HONEST).map(|n| Family::V4.client(n)).collect();
    traffic::flood_clients(&pair.client, to, &honest, Family::V4.client(HONEST + 1))
}
