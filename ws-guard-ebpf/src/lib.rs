//! The kernel programs: parse the packet, call the tracker, apply the verdict.
//!
//! What a frame is and what becomes of it is decided in `ws-guard-common`, which the host tests.
//! Here is only what needs the kernel:
//!
//! - [`headers`] and [`tunnel`] find TCP in a [`packet`], [`payload`] reads and changes what it
//!   carries, [`checksum`] mends it, with what [`xdp`] and [`skb`] know of the hooks;
//! - [`unreadable`] decides about what cannot be read;
//! - [`ingress`] takes a client's segment through plan, walk, commit and charge: [`rewalk`] is for
//!   retransmissions, [`commit`] for what follows a walk, [`scene`] for what all of them know;
//! - [`quick`] is the shortcut of the common segment;
//! - [`held`] is for what comes behind a gap, [`kept`] for the copy of it;
//! - [`handshake`] reads requests and answers, and opens flows; [`requests`] keeps them meanwhile;
//! - [`tls`] follows the beginning of a connection where only TLS records are to be seen;
//! - [`egress`] takes the server's acknowledgements and frames;
//! - [`options`] reads TCP options, and keeps clients to one connection each;
//! - [`pace`] holds the receive window of connections over their limit;
//! - [`role`] tells whose flow it is where a packet passes two guarded interfaces;
//! - [`identify`] reads who a request comes from;
//! - [`floods`] keeps who sends too much else;
//! - [`sources`] keeps who pings, [`tables`] makes room under pressure;
//! - [`control`] is the daemon's hand on a source;
//! - [`report`] counts and sends events, [`debug`] logs for who debugs.
#![no_std]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a map value passed by value would be copied to the stack, which cannot hold it"
)]
#![allow(internal_features, reason = "the BPF target has no stable atomic add")]
#![feature(core_intrinsics, stmt_expr_attributes)]

pub mod checksum;
pub mod commit;
pub mod control;
pub mod debug;
pub mod egress;
pub mod floods;
pub mod handshake;
pub mod headers;
pub mod held;
pub mod identify;
pub mod ingress;
pub mod joining;
pub mod kept;
pub mod maps;
pub mod options;
pub mod pace;
pub mod packet;
pub mod payload;
pub mod quick;
pub mod report;
pub mod requests;
pub mod rewalk;
pub mod role;
pub mod scene;
pub mod skb;
pub mod sources;
pub mod tables;
pub mod tls;
pub mod trail;
pub mod tunnel;
pub mod unreadable;
pub mod walk;
pub mod xdp;
