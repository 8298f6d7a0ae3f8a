//! What `cargo xtask bench socket` measures: a second line at the server's sockets, beside the guard at
//! the interface. No part of the product.
//!
//! `sock_ops`, attached to the server's control group, puts each connection that the protected port
//! accepts into a map of sockets. What such a socket receives goes through the `sk_skb` program that is
//! attached to the map, in order and once, before the server may read it.
#![no_std]
#![no_main]

mod connection;
mod follow;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, sk_action,
    },
    btf_maps::{Array, HashMap, SockHash},
    helpers::bpf_get_socket_cookie,
    macros::{btf_map, sock_ops, stream_parser, stream_verdict},
    programs::{SkBuffContext, SockOpsContext},
};
use connection::{Connection, Settings};

/// Sockets, and connections that are followed, at once.
const MOST: usize = 16_384;

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// Sockets by their cookie. One leaves by itself when it closes.
#[btf_map]
static SOCKETS: SockHash<u64, MOST> = SockHash::new();

/// What is known of each, if the settings say that connections are followed. Not in the socket's own
/// storage: `sk_skb` programs may not reach it.
#[btf_map]
static CONNECTIONS: HashMap<u64, Connection, MOST> = HashMap::new();

/// Takes in who connects, and forgets who is gone.
#[sock_ops]
pub fn socket_established(ctx: SockOpsContext) -> u32 {
    let Some(settings) = SETTINGS.get(0) else {
        return 1;
    };
    let op = ctx.op();
    if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && settings.ports.contains(&ctx.local_port()) {
        take_in(&ctx, settings);
    } else if op == BPF_SOCK_OPS_STATE_CB && ctx.arg(1) == BPF_TCP_CLOSE {
        let _ = CONNECTIONS.remove(cookie(&ctx));
    }
    1
}

#[inline(always)]
fn take_in(ctx: &SockOpsContext, settings: &Settings) {
    let mut key = cookie(ctx);
    if settings.follows != 0 {
        let flags = BPF_SOCK_OPS_STATE_CB_FLAG as i32;
        let new = Connection::default();
        if ctx.set_cb_flags(flags).is_err() || CONNECTIONS.insert(key, new, 0).is_err() {
            return;
        }
    }
    // SAFETY: the context outlives the program's run.
    let _ = SOCKETS.update(&mut key, unsafe { &mut *ctx.ops }, BPF_ANY.into());
}

/// Unique and never given again.
#[inline(always)]
fn cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the context outlives the program's run.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// A message is whatever has come. A map of sockets may do without a parser.
#[stream_parser]
pub fn socket_parse(ctx: SkBuffContext) -> u32 {
    ctx.len()
}

/// What it costs that there is a program at all.
#[stream_verdict]
pub fn socket_pass(_ctx: SkBuffContext) -> u32 {
    sk_action::SK_PASS
}

/// Takes the place of another, to show for which sockets.
#[stream_verdict]
pub fn socket_drop(_ctx: SkBuffContext) -> u32 {
    sk_action::SK_DROP
}

/// Follows the client's frames, and turns pings over the limit into pongs. Passes everything.
#[stream_verdict]
pub fn socket_follow(ctx: SkBuffContext) -> u32 {
    if let (Some(settings), Some(connection)) =
        (SETTINGS.get(0), CONNECTIONS.get_ptr_mut(cookie(&ctx)))
    {
        // SAFETY: the kernel runs this under the socket's lock, and nobody else writes to the entry,
        // which stays mapped while the program runs.
        follow::message(&ctx, settings, unsafe { &mut *connection });
    }
    sk_action::SK_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing here panics: the verifier would refuse a path that never ends.
    loop {}
}

/// The kernel lets only GPL-compatible programs call the helpers used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
