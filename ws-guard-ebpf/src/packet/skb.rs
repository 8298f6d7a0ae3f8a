//! A packet at TC.
//!
//! Functions with a name in the object's BTF are global ones: the verifier checks each once, for
//! any arguments, not at each call.

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes},
    programs::TcContext,
};

use crate::{
    cpu,
    limits::pace,
    opening::merged,
    packet::{
        self, Parsed, Segment, TCP_ACK, TCP_CHECK, TCP_WINDOW, checksum, headers, options,
        payload::{self, Hook, Payload},
    },
    report::Side,
    stream::{heartbeat, walk::Walker},
};

/// Usual length of headers, in bytes: Ethernet with two tags, IPv6 with some extensions, TCP with
/// all its options.
const HEADERS: u32 = 192;
/// Maximum length of headers, in bytes. Longer ones count as hidden.
const MOST_HEADERS: u32 = 4096;

/// Find the TCP segment of a packet at TC.
#[inline(always)]
pub fn parse_skb(ctx: &TcContext, side: Side) -> Parsed {
    let hook = Skb(ctx.as_ptr().cast());
    hook.pull(HEADERS);
    let mut found = hook.parse(side);
    if found == Parsed::Short as u32 && hook.pull(MOST_HEADERS) {
        found = hook.parse(side);
    }
    packet::no_longer_short(&hook, found)
}

/// The context of a TC program.
pub struct Skb(*mut __sk_buff);

/// The payload of either side.
pub type SkbPayload = Payload<Skb>;

impl SkbPayload {
    #[inline(always)]
    pub fn new(ctx: &TcContext, segment: &Segment, side: Side) -> Self {
        Payload::at(Skb(ctx.as_ptr().cast()), segment, side)
    }

    /// Find the head of a 101 in the server's segment, see [`merged::find`].
    #[inline(always)]
    pub fn find_merged(&self) -> bool {
        ws_guard_find_merged_skb(self.hook.0) != 0
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_find_merged_skb(ctx: *mut __sk_buff) -> u32 {
    let (Some(segment), Some(state)) = (packet::segment(), cpu::resume()) else {
        return 0;
    };
    let packet = Payload::at(Skb(ctx), segment, Side::Server);
    merged::find(&mut Walker { state, packet }) as u32
}

impl Skb {
    #[inline(always)]
    fn parse(&self, side: Side) -> u32 {
        packet::begin();
        let found = ws_guard_headers_skb(self.0, side as u32);
        if found == Parsed::Tunnel as u32 {
            return ws_guard_headers_skb(self.0, side as u32);
        }
        found
    }

    /// Make the first `bytes`, or all there are, directly readable. `false` when they were already.
    #[inline(always)]
    fn pull(&self, bytes: u32) -> bool {
        let size = self.size();
        let wanted = if size < bytes { size } else { bytes };
        let (data, end) = self.linear();
        let short = end - data < wanted as usize;
        if short {
            // SAFETY: the context outlives the program's run. On failure the parser reports a short
            // packet.
            unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
        short
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_headers_skb(ctx: *mut __sk_buff, side: u32) -> u32 {
    headers::parse(&Skb(ctx), Side::from(side)) as u32
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_cover_skb(ctx: *mut __sk_buff, at: u32, len: u32) -> u32 {
    payload::cover(&Skb(ctx), at, len)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_byte_skb(ctx: *mut __sk_buff, at: u32) -> u32 {
    payload::byte(&Skb(ctx), at)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_defuse_skb(ctx: *mut __sk_buff, at: u32) -> u32 {
    payload::defuse(&Skb(ctx), at)
}

/// Fix the checksum of a segment inside a tunnel after its words grew by `added`.
/// The kernel's own mark of an incomplete checksum (CHECKSUM_PARTIAL) may be about the outer one
/// there.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_fix_inner_checksum_skb(ctx: *mut __sk_buff, added: u32) -> u32 {
    let Some(segment) = packet::segment() else {
        return 0;
    };
    let offset = segment.tcp.wrapping_add(TCP_CHECK);
    let mut field = [0u8; 2];
    let pointer = field.as_mut_ptr();
    // SAFETY: two bytes on the stack; the helper checks the packet's bounds.
    if !unsafe { Skb(ctx).load(offset, pointer, 2) } {
        return 0;
    }
    let Some(new) = checksum::updated(u16::from_be_bytes(field), segment, added) else {
        return 0;
    };
    field = new.to_be_bytes();
    // SAFETY: as above.
    unsafe { bpf_skb_store_bytes(ctx, offset, field.as_ptr().cast(), 2, 0) as u32 }
}

/// Lower the window of the server's segment, on a paced connection, to the held edge ([`pace`]).
#[inline(always)]
pub fn hold(ctx: &TcContext, now: u64) {
    ws_guard_hold_skb(ctx.as_ptr().cast(), now);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_hold_skb(ctx: *mut __sk_buff, now: u64) -> u32 {
    let Some(window) = pace::window(now) else {
        return 0;
    };
    let Some(segment) = packet::segment() else {
        return 0;
    };
    let (old, field) = (segment.window as u16, window.to_be_bytes());
    let (at, check) = (segment.tcp + TCP_WINDOW, segment.tcp + TCP_CHECK);
    // SAFETY: the helpers check the packet's bounds.
    unsafe {
        if bpf_skb_store_bytes(ctx, at, field.as_ptr().cast(), 2, 0) != 0 {
            return 0;
        }
        if segment.tunnelled != 0 {
            return ws_guard_fix_inner_checksum_skb(ctx, checksum::changed(old, window));
        }
        bpf_l4_csum_replace(ctx, check, old.to_be().into(), window.to_be().into(), 2) as u32
    }
}

/// Options of the current SYN-ACK, see [`options::server`].
#[inline(always)]
pub fn options(ctx: &TcContext) -> u32 {
    ws_guard_options_skb(ctx.as_ptr().cast())
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_options_skb(ctx: *mut __sk_buff) -> u32 {
    options::server(|segment| Payload::at(Skb(ctx), segment, Side::Server))
}

#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_acknowledge_less_skb(ctx: *mut __sk_buff, less: u32) -> u32 {
    payload::acknowledge_less(&Skb(ctx), less)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_heartbeat_skb(
    ctx: *mut __sk_buff,
    at: u32,
    what: u32,
    generation: u32,
) -> u32 {
    heartbeat::at(&Skb(ctx), at, what, generation)
}

impl Hook for Skb {
    #[inline(always)]
    fn heartbeat(&self, at: u32, what: u32, generation: u32) -> u32 {
        ws_guard_heartbeat_skb(self.0, at, what, generation)
    }

    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        // SAFETY: the context outlives the program's run.
        unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) }
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller vouches for `to`; the helper checks the packet's bounds.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to.cast(), len) == 0 }
    }

    #[inline(always)]
    fn cover(&self, at: u32, len: u32) -> u32 {
        ws_guard_cover_skb(self.0, at, len)
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u32 {
        ws_guard_byte_skb(self.0, at)
    }

    #[inline(always)]
    fn defuse(&self, at: u32) -> u32 {
        ws_guard_defuse_skb(self.0, at)
    }

    /// By a helper: for a program that writes directly the kernel copies every cloned packet
    /// beforehand, and between local namespaces all packets are clones.
    #[inline(always)]
    fn raise(&self, offset: u32) -> bool {
        let mut byte = 0u8;
        let pointer = &raw mut byte;
        // SAFETY: one byte on the stack; the helpers check the packet's bounds.
        unsafe {
            if !self.load(offset, pointer, 1) {
                return false;
            }
            *pointer += 1;
            bpf_skb_store_bytes(self.0, offset, pointer.cast(), 1, 0) == 0
        }
    }

    #[inline(always)]
    fn acknowledge_less(&self, less: u32) -> u32 {
        ws_guard_acknowledge_less_skb(self.0, less)
    }

    #[inline(always)]
    fn write_ack(&self, segment: &Segment, ack: u32) -> bool {
        let (at, field) = (segment.tcp + TCP_ACK, ack.to_be_bytes());
        // SAFETY: the helper checks the packet's bounds.
        unsafe { bpf_skb_store_bytes(self.0, at, field.as_ptr().cast(), 4, 0) == 0 }
    }

    #[inline(always)]
    fn fix_checksum(&self, segment: &Segment, added: u32) {
        if segment.tunnelled != 0 {
            ws_guard_fix_inner_checksum_skb(self.0, added);
            return;
        }
        // The helper does not touch a field that holds only the pseudo header's sum
        // (CHECKSUM_PARTIAL); with a size of 0 it adds a difference.
        let difference = added.to_be();
        // SAFETY: the helper checks the packet's bounds.
        unsafe {
            bpf_l4_csum_replace(self.0, segment.tcp + TCP_CHECK, 0, difference.into(), 0);
        }
    }
}
