//! Clients that a proxy's header identifies, one row a test.
//!
//! The rows have every value of every axis, and every pair of front and server, of IP version and
//! kind of address, of place and action. Fronts that speak the PROXY protocol to the server are in
//! front of the companion server alone: the foreign libraries read none. In the chain of HAProxy
//! and nginx it is nginx that reads it, so that one is in front of a foreign server.
use anyhow::{Result, ensure};
use ws_guard_testkit::{
    edge::Reach::{self, Private, Public},
    netns::Family::{self, V4, V6},
    proxies::Front::{self, *},
    servers::Library::{Gorilla, Python, Ws},
};

use crate::{
    row::{FULL, Part, Row, SMALL},
    stage::{
        Role::{self, Pod, Uplink},
        Serving::{self, *},
    },
};

type Place = (Role, &'static str);

fn row(front: Front, serving: Serving, (family, reach): (Family, Reach), at: Place) -> Row {
    let (role, action) = at;
    let (size, killed, defaults) = (SMALL, false, false);
    Row { front, serving, family, reach, role, action, size, killed, defaults }
}

/// Define a test for each row.
macro_rules! rows {
    ($($(#[$about:meta])* $name:ident: $row:expr;)*) => {
        $($(#[$about])* #[test] fn $name() -> Result<()> {
            needs_root!();
            $row.run()
        })*
    };
}

rows! {
    nginx_before_python: row(Nginx, Library(Python), (V4, Public), (Pod, "defuse"));
    nginx_before_ws: row(Nginx, Library(Ws), (V6, Private), (Uplink, "drop"));
    nginx_forwarded_before_gorilla:
        row(NginxForwarded, Library(Gorilla), (V6, Public), (Uplink, "defuse"));
    nginx_forwarded_before_companion: row(NginxForwarded, Companion, (V4, Private), (Pod, "drop"));
    haproxy_before_ws: row(Haproxy, Library(Ws), (V4, Private), (Uplink, "defuse"));
    haproxy_before_companion: row(Haproxy, Companion, (V6, Public), (Pod, "drop"));
    proxy_v1_before_companion:
        row(ProxyV1, CompanionBehindProxyProtocol, (V6, Private), (Pod, "defuse"));
    proxy_v2_before_companion:
        row(ProxyV2, CompanionBehindProxyProtocol, (V4, Public), (Uplink, "drop"));
    nginx_and_haproxy_before_python:
        row(NginxHaproxy, Library(Python), (V6, Private), (Uplink, "drop"));
    haproxy_and_nginx_before_gorilla:
        row(HaproxyNginx, Library(Gorilla), (V4, Public), (Pod, "drop"));
    /// Full number of clients and full duration.
    full_size:
        Row { size: FULL, ..row(Nginx, Library(Gorilla), (V4, Public), (Uplink, "defuse")) };
    /// The kernel programs read the headers, not the daemon.
    without_a_daemon:
        Row { killed: true, size: FULL, ..row(Haproxy, Library(Gorilla), (V4, Public), (Pod, "defuse")) };
    /// An operator without any settings hurts no client.
    with_nothing_set:
        Row { defaults: true, size: FULL, ..row(Nginx, Library(Python), (V4, Public), (Uplink, "defuse")) };
}

/// Every front before every server, at every place.
/// For both IP versions, kinds of addresses and actions, with the full number of clients and
/// duration.
#[test]
#[ignore = "takes four hours: `cargo xtask test --nightly`"]
fn every_combination() -> Result<()> {
    needs_root!();
    let part = Part::wanted()?;
    let rows = part.of(combinations());
    let mut failures = Vec::new();
    for row in &rows {
        // A failure behind one proxy says nothing about the others.
        if let Err(error) = row.run() {
            println!("{row:?}: FAILED: {error:#}");
            failures.push(format!("{row:?}: {error:#}"));
        }
    }
    println!("{} of {} combinations failed", failures.len(), rows.len());
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn combinations() -> Vec<Row> {
    let headers = Front::WITH_HEADERS.map(|front| Serving::HTTP.map(|serving| (front, serving)));
    let protocol = Front::WITH_PROXY_PROTOCOL.map(|front| (front, CompanionBehindProxyProtocol));
    let mut rows = Vec::new();
    for (front, serving) in headers.into_iter().flatten().chain(protocol) {
        for address in Family::BOTH.map(|family| Reach::BOTH.map(|reach| (family, reach))) {
            for address in address {
                for role in Role::BOTH {
                    let row = |action| row(front, serving, address, (role, action));
                    rows.extend(["defuse", "drop"].map(|action| Row { size: FULL, ..row(action) }));
                }
            }
        }
    }
    rows
}
