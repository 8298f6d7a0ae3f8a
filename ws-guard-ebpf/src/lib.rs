//! The kernel programs: parse the packet, call the tracker, apply the verdict.
//!
//! Frames are parsed and judged in `ws-guard-common`, which is tested on the host. This crate holds only
//! what needs the kernel:
//!
//! - [`packet`]: TCP in a packet at either hook, its payload and its options;
//! - [`opening`]: the upgrade request and its answer, which opens a flow;
//! - [`stream`]: which bytes of a flow are new, and which frames they hold;
//! - [`limits`]: what a source or connection may send, and what happens beyond it;
//! - [`ingress`] takes a client's segment through these, [`egress`] the server's, with what the
//!   [`context`] of the packet says and the state of this [`cpu`];
//! - [`maps`] and [`tables`]: the BPF maps, and room in them under pressure;
//! - [`control`]: changes to sources on the daemon's behalf;
//! - [`report`]: counters and events; [`servers`]: figures by server; [`debug`]: log lines for developers.
#![no_std]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a map value passed by value would be copied to the stack, which cannot hold it"
)]
#![allow(internal_features, reason = "the BPF target has no stable atomic add")]
#![feature(core_intrinsics, stmt_expr_attributes)]

pub mod clock;
pub mod context;
pub mod control;
pub mod cpu;
pub mod debug;
pub mod egress;
pub mod ingress;
pub mod limits;
pub mod maps;
pub mod opening;
pub mod packet;
pub mod report;
pub mod servers;
pub mod stream;
pub mod tables;
