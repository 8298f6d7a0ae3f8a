//! Namespaces, foreign servers and clients for the tests and the demonstration.
//!
//! Everything here works on the real kernel and needs root. All traffic stays inside network
//! namespaces that [`netns`] creates and removes again.
//!
//! - [`netns`]: two namespaces and the veth pair between them; [`node`]: a node with pods;
//! - [`path`]: two namespaces with a path between them that loses and reorders packets;
//! - [`edge`]: clients with many addresses, a proxy's host and such a node; [`proxies`]: nginx and
//!   HAProxy;
//! - [`process`]: child processes with captured output, ended when dropped;
//! - [`servers`]: echo servers on third-party WebSocket libraries;
//! - [`others`]: servers and clients of other protocols; [`sink`]: a server that accepts anything;
//! - [`frame`] and [`client`]: a raw client that controls each TCP segment's end, and counts what
//!   it sent and received without a line of `ws-guard-common`;
//! - [`wire`]: the bytes of a connection, plain or inside TLS; [`flooders`]: floods of each kind of
//!   frame on one or many connections, with messages in between that have to come back;
//! - [`flood`], [`honest`]: the two clients of the demonstration; [`pool`]: hundreds of clients at
//!   once; [`visitors`]: a proxy's consecutive connections for thousands of clients;
//! - [`raw`]: spoofed segments;
//! - [`raw_tcp`]: a client with its own TCP, which can lie in every field of a segment; [`beyond`]:
//!   one that floods and ignores windows; [`probing`]: one that heeds them, and probes with new
//!   bytes; [`ip`] and [`tunnel`]: transformations and encapsulations of packets in networks;
//! - [`foreign_tcp`]: a client whose TCP is smoltcp, in user space;
//! - [`capture`]: segments as they pass an interface;
//! - [`packets`] and [`programs`]: the kernel programs run on packets built by hand, without a
//!   network;
//! - [`variant`]: different but equivalent kernel programs, as after an upgrade; [`older`]: guards
//!   of earlier versions;
//! - [`usage`]: memory and CPU time reported by the kernel; [`statistics`]: TCP counters of a
//!   namespace;
//! - [`leftovers`]: kernel objects of a guard, and a check that they are gone;
//! - [`filled`]: pinned tables with any number of entries;
//! - [`browser`]: a headless browser in a namespace;
//! - [`redis`] and [`postgres`]: servers of theirs;
//! - [`tools`]: where `cargo xtask setup` puts what is not Rust.
pub mod autobahn;
pub mod beyond;
pub mod browser;
pub mod capture;
pub mod certificate;
pub mod client;
pub mod edge;
pub mod filled;
pub mod flood;
pub mod flooders;
pub mod foreign_client;
pub mod foreign_tcp;
pub mod frame;
pub mod honest;
pub mod ip;
pub mod leftovers;
pub mod netns;
pub mod node;
pub mod older;
pub mod others;
pub mod packets;
pub mod path;
pub mod pool;
pub mod postgres;
pub mod probing;
pub mod process;
pub mod programs;
pub mod proxies;
pub mod raw;
pub mod raw_tcp;
pub mod recut;
pub mod redis;
pub mod servers;
pub mod sink;
pub mod statistics;
pub mod tmux;
pub mod tools;
pub mod tunnel;
pub mod usage;
pub mod variant;
pub mod visitors;
pub mod wait;
pub mod wire;

use aya::util::KernelVersion;

/// Return why a test that needs root cannot run here, or `None` when it can.
///
/// ```no_run
/// if let Some(reason) = ws_guard_testkit::skip_reason() {
/// println!("skipped: {reason}");
/// return;
/// }
/// ```
pub fn skip_reason() -> Option<String> {
    let user = nix::unistd::geteuid();
    (!user.is_root()).then(|| {
        format!(
            "needs root for namespaces and BPF, runs as uid {user}: try `sudo -E cargo xtask test`"
        )
    })
}

/// Return why TCX is not available here, or `None` when it is.
pub fn no_tcx_reason() -> Option<String> {
    let since = KernelVersion::new(6, 6, 0);
    let kernel = KernelVersion::current().ok()?;
    (kernel < since).then(|| "needs TCX, which came with Linux 6.6".to_owned())
}
