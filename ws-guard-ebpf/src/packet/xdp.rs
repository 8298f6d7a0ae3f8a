//! A packet at XDP.
//!
//! Functions with a name in the object's BTF are global ones: the verifier checks each once, for
//! any arguments, not at each call.

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_md,
    helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    programs::XdpContext,
};

use crate::{
    packet::{
        self, Parsed, Segment, TCP_ACK, TCP_CHECK, checksum, headers,
        payload::{self, Hook, Payload},
    },
    report::Side,
    stream::heartbeat,
};

/// Find the TCP segment of a client's packet at XDP.
#[inline(always)]
pub fn parse_xdp(ctx: &XdpContext) -> Parsed {
    let hook = Xdp(ctx.as_ptr().cast());
    packet::begin();
    let mut found = ws_guard_headers_xdp(hook.0);
    if found == Parsed::Tunnel as u32 {
        found = ws_guard_headers_xdp(hook.0);
    }
    packet::no_longer_short(&hook, found)
}

/// The context of an XDP program.
pub struct Xdp(*mut xdp_md);

/// A client's payload.
pub type XdpPayload = Payload<Xdp>;

impl XdpPayload {
    #[inline(always)]
    pub fn new(ctx: &XdpContext, segment: &Segment) -> Self {
        Payload::at(Xdp(ctx.as_ptr().cast()), segment, Side::Client)
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_headers_xdp(ctx: *mut xdp_md) -> u32 {
    headers::parse(&Xdp(ctx), Side::Client) as u32
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_cover_xdp(ctx: *mut xdp_md, at: u32, len: u32) -> u32 {
    payload::cover(&Xdp(ctx), at, len)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_byte_xdp(ctx: *mut xdp_md, at: u32) -> u32 {
    payload::byte(&Xdp(ctx), at)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_defuse_xdp(ctx: *mut xdp_md, at: u32) -> u32 {
    payload::defuse(&Xdp(ctx), at)
}

#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_acknowledge_less_xdp(ctx: *mut xdp_md, less: u32) -> u32 {
    payload::acknowledge_less(&Xdp(ctx), less)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_heartbeat_xdp(ctx: *mut xdp_md, at: u32, what: u32, generation: u32) -> u32 {
    heartbeat::at(&Xdp(ctx), at, what, generation)
}

impl Hook for Xdp {
    #[inline(always)]
    fn heartbeat(&self, at: u32, what: u32, generation: u32) -> u32 {
        ws_guard_heartbeat_xdp(self.0, at, what, generation)
    }

    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        // SAFETY: the context outlives the program's run.
        unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) }
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }

    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the caller vouches for `to`; the helper checks the packet's bounds.
        unsafe { bpf_xdp_load_bytes(self.0, offset, to.cast(), len) == 0 }
    }

    #[inline(always)]
    fn cover(&self, at: u32, len: u32) -> u32 {
        ws_guard_cover_xdp(self.0, at, len)
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u32 {
        ws_guard_byte_xdp(self.0, at)
    }

    #[inline(always)]
    fn defuse(&self, at: u32) -> u32 {
        ws_guard_defuse_xdp(self.0, at)
    }

    #[inline(always)]
    fn raise(&self, offset: u32) -> bool {
        let (data, end) = self.linear();
        if let Some(pointer) = packet::byte_at(data, end, offset as usize) {
            // SAFETY: `byte_at` checked the bounds.
            unsafe { *pointer.cast_mut() += 1 };
            return true;
        }
        let mut byte = 0u8;
        let pointer = &raw mut byte;
        // SAFETY: one byte on the stack; the helpers check the packet's bounds.
        unsafe {
            if !self.load(offset, pointer, 1) {
                return false;
            }
            *pointer += 1;
            bpf_xdp_store_bytes(self.0, offset, pointer.cast(), 1) == 0
        }
    }

    #[inline(always)]
    fn acknowledge_less(&self, less: u32) -> u32 {
        ws_guard_acknowledge_less_xdp(self.0, less)
    }

    #[inline(always)]
    fn write_ack(&self, segment: &Segment, ack: u32) -> bool {
        let (data, end) = self.linear();
        let field = packet::at::<[u8; 4]>(data, end, (segment.tcp + TCP_ACK) as usize);
        if let Some(pointer) = field {
            // SAFETY: `at` checked the bounds.
            unsafe { pointer.cast_mut().write(ack.to_be_bytes()) };
        }
        field.is_some()
    }

    #[inline(always)]
    fn fix_checksum(&self, segment: &Segment, added: u32) {
        let (data, end) = self.linear();
        let check = (segment.tcp + TCP_CHECK) as usize;
        if let Some(pointer) = packet::at::<u16>(data, end, check) {
            let pointer = pointer.cast_mut();
            // SAFETY: `at` checked the bounds.
            let old = u16::from_be(unsafe { pointer.read_unaligned() });
            if let Some(new) = checksum::updated(old, segment, added) {
                // SAFETY: as above.
                unsafe { pointer.write_unaligned(new.to_be()) };
            }
        }
    }
}
