//! One message of a socket: the request, or frames that the tracker follows.
use core::ffi::{c_long, c_void};

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_loop, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::SkBuffContext,
};
use ws_guard_common::{
    frame::PING_TO_PONG,
    handshake::{END, MAX_HEAD, UPGRADE_WEBSOCKET},
    tracker::{FROM_CLIENT, Segment, Step, Tracker, Walk},
};

use crate::connection::{Connection, Settings};

/// The request is not over.
const REQUEST: u32 = 0;
/// The request asked for a WebSocket; frames follow.
const FRAMES: u32 = 1;
/// It did not, or the walk could not be brought to its end.
const LOST: u32 = 2;
/// As in the product: a step covers two bytes at least.
const MAX_STEPS: u32 = 32_800;

/// What a loop works on.
struct Follower<'a> {
    message: Message,
    connection: &'a mut Connection,
}

/// Bytes that a socket received. In what local namespaces send each other they lie in pieces, so that a
/// helper has to read them.
struct Message {
    skb: *mut __sk_buff,
    len: u32,
}

/// Follow a message.
#[inline(always)]
pub fn message(ctx: &SkBuffContext, settings: &Settings, connection: &mut Connection) {
    let message = Message { skb: ctx.as_ptr().cast(), len: ctx.len() };
    let len = message.len;
    connection.messages += 1;
    let mut follower = Follower { message, connection };
    if follower.connection.state == REQUEST {
        follower.read_request();
    }
    if follower.connection.state == FRAMES {
        follower.walk(settings.limit);
    }
    let connection = follower.connection;
    connection.position = connection.position.wrapping_add(len);
}

impl Follower<'_> {
    #[inline(always)]
    fn read_request(&mut self) {
        self.connection.at = 0;
        let turn: unsafe extern "C" fn(u32, *mut Self) -> c_long = read_byte;
        // SAFETY: the callback gets `self` back, which outlives the loop.
        unsafe {
            bpf_loop(MAX_HEAD, turn as *mut c_void, core::ptr::from_mut(self).cast(), 0);
        }
        let connection = &mut *self.connection;
        if connection.head.found & END == 0 {
            return;
        }
        let begins = connection.position.wrapping_add(connection.at);
        connection.tracker = Tracker::new(begins, FROM_CLIENT);
        let asks = connection.head.found & UPGRADE_WEBSOCKET != 0;
        connection.state = if asks { FRAMES } else { LOST };
    }

    #[inline(always)]
    fn walk(&mut self, limit: u32) {
        let connection = &mut *self.connection;
        let passed = connection.pings as u32;
        let tracker = connection.tracker;
        connection.walk = Walk::new(tracker, &tracker, connection.position, self.message.len);
        connection.walk.budget = limit.saturating_sub(passed);
        let turn: unsafe extern "C" fn(u32, *mut Self) -> c_long = step;
        // SAFETY: as above.
        unsafe {
            bpf_loop(MAX_STEPS, turn as *mut c_void, core::ptr::from_mut(self).cast(), 0);
        }
        let connection = &mut *self.connection;
        if connection.step != Step::Done as u32 {
            connection.state = LOST;
            return;
        }
        connection.tracker = connection.walk.tracker;
        connection.pings += u64::from(connection.walk.pings);
    }
}

unsafe extern "C" fn read_byte(_index: u32, follower: *mut Follower<'_>) -> c_long {
    // SAFETY: `read_request` passed it, and nobody else uses it during the loop.
    let follower = unsafe { &mut *follower };
    let Some(byte) = follower.message.u8_at(follower.connection.at) else {
        return 1;
    };
    follower.connection.at += 1;
    follower.connection.head.push(byte) as c_long
}

/// One step; 1 ends the loop.
unsafe extern "C" fn step(_index: u32, follower: *mut Follower<'_>) -> c_long {
    // SAFETY: `walk` passed it, and nobody else uses it during the loop.
    let follower = unsafe { &mut *follower };
    let step = follower.connection.walk.step(&mut follower.message);
    follower.connection.step = step as u32;
    !matches!(step, Step::More) as c_long
}

impl Message {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let to = (&raw mut bytes).cast();
        // SAFETY: `N` bytes on the stack; the helper checks the message's bounds.
        let loaded = unsafe { bpf_skb_load_bytes(self.skb.cast(), at, to, N as u32) };
        if loaded == 0 { Some(bytes) } else { None }
    }
}

impl Segment for Message {
    #[inline(always)]
    fn u8_at(&self, at: u32) -> Option<u8> {
        self.load(at).map(|[byte]| byte)
    }

    #[inline(always)]
    fn u16_at(&self, at: u32) -> Option<u16> {
        self.load(at).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn u64_at(&self, at: u32) -> Option<u64> {
        self.load(at).map(u64::from_be_bytes)
    }

    #[inline(always)]
    fn defuse(&mut self, at: u32) {
        let Some(byte) = self.u8_at(at) else {
            return;
        };
        let byte = byte ^ PING_TO_PONG;
        // SAFETY: one byte on the stack; the helper checks the message's bounds.
        unsafe { bpf_skb_store_bytes(self.skb, at, (&raw const byte).cast(), 1, 0) };
    }
}
