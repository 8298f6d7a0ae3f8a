//! Ring of packets shared with the kernel: `PACKET_RX_RING`, version 3.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use ws_guard_inspect::{finding::Place, input::Packet};

/// Size and number of blocks: 16 MiB; packets take no more than their length.
const BLOCK: usize = 1 << 20;
pub const BLOCKS: usize = 16;
/// Milliseconds after which an incomplete block is handed over.
pub const RETIRE_MS: u32 = 50;
/// LINKTYPE values, <https://www.tcpdump.org/linktypes.html>.
const LINK_ETHERNET: i32 = 1;
const LINK_RAW: i32 = 101;

/// Packet ring of one interface.
pub struct Ring {
    socket: Socket,
    memory: NonNull<u8>,
    /// Block to be filled next.
    block: usize,
    packets: u64,
    dropped: u64,
}

impl Ring {
    pub fn open(interface: &str) -> io::Result<Ring> {
        let name = CString::new(interface)?;
        // SAFETY: the name is a C string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Bound to a protocol only after the ring exists: no packet of another interface enters it.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set(&socket, libc::PACKET_VERSION, &version)?;
        // SAFETY: zeros are a valid request.
        let mut request: libc::tpacket_req3 = unsafe { std::mem::zeroed() };
        request.tp_block_size = BLOCK as u32;
        request.tp_block_nr = BLOCKS as u32;
        request.tp_frame_size = 2048;
        request.tp_frame_nr = (BLOCK * BLOCKS / 2048) as u32;
        request.tp_retire_blk_tov = RETIRE_MS;
        set(&socket, libc::PACKET_RX_RING, &request)?;
        let memory = map(&socket)?;
        let ring = Ring { socket, memory, block: 0, packets: 0, dropped: 0 };
        ring.socket.bind(&address(index))?;
        Ok(ring)
    }

    /// Pass the packets of the next block to `take`, if the kernel has handed it over.
    pub fn read(&mut self, mut take: impl FnMut(&Packet<'_>)) -> bool {
        // SAFETY: the block lies in the mapping, which begins at a page.
        let block = unsafe { self.memory.add(self.block * BLOCK) };
        // SAFETY: the kernel wrote a descriptor there, and only changes its status while it owns it.
        let header =
            unsafe { &raw mut (*block.cast::<libc::tpacket_block_desc>().as_ptr()).hdr.bh1 };
        // SAFETY: the status is an aligned u32 that both sides access as a whole.
        let status = unsafe { AtomicU32::from_ptr(&raw mut (*header).block_status) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: until the status is set back, the kernel does not write to the block.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), BLOCK) };
        // SAFETY: as above.
        let (count, first) = unsafe { ((*header).num_pkts, (*header).offset_to_first_pkt) };
        self.packets(bytes, count, first as usize, &mut take);
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.block = (self.block + 1) % BLOCKS;
        true
    }

    fn packets(
        &mut self,
        block: &[u8],
        count: u32,
        first: usize,
        take: &mut impl FnMut(&Packet<'_>),
    ) {
        let mut at = first;
        for _ in 0..count {
            let Some(header) = structure::<libc::tpacket3_hdr>(block, at) else { return };
            let behind = size_of::<libc::tpacket3_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
            let Some(link) = structure::<libc::sockaddr_ll>(block, at + behind) else { return };
            let is_ethernet = matches!(link.sll_hatype, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK);
            // On other links, the kernel knows where IP begins: tunnels, PPP, InfiniBand.
            let from = usize::from(if is_ethernet { header.tp_mac } else { header.tp_net });
            let left_out = from.saturating_sub(header.tp_mac.into());
            let length = (header.tp_snaplen as usize).saturating_sub(left_out);
            let data = block.get(at + from..at + from + length);
            at += header.tp_next_offset as usize;
            // Loopback delivers each packet twice.
            let is_copy = link.sll_hatype == libc::ARPHRD_LOOPBACK
                && link.sll_pkttype == libc::PACKET_OUTGOING;
            let Some(data) = data.filter(|_| !is_copy) else { continue };
            self.packets += 1;
            let time_ns = u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec);
            let place = Place { file: 1, packet: self.packets, time_ns };
            let original = header.tp_len.saturating_sub(left_out as u32);
            let link = if is_ethernet { LINK_ETHERNET } else { LINK_RAW };
            take(&Packet { place, link, data, original });
        }
    }

    /// Return the number of packets dropped so far for lack of room.
    pub fn dropped(&mut self) -> io::Result<u64> {
        // SAFETY: zeros are valid counters.
        let mut counters: libc::tpacket_stats_v3 = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&counters) as libc::socklen_t;
        // SAFETY: the socket is open, and the kernel writes at most `length` bytes to the counters.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counters).cast(),
                &raw mut length,
            )
        };
        if got != 0 {
            return Err(io::Error::last_os_error());
        }
        // The kernel resets its counter on each read.
        self.dropped += u64::from(counters.tp_drops);
        Ok(self.dropped)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing borrowed from it outlives the ring.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BLOCK * BLOCKS) };
    }
}

/// Read a structure of integers at any offset.
fn structure<T>(block: &[u8], at: usize) -> Option<T> {
    let bytes = block.get(at..at + size_of::<T>())?;
    // SAFETY: there are as many bytes as it has, it is read unaligned, and any bytes are valid integers.
    Some(unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn set<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the socket is open, and the value is the structure that the option takes.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn map(socket: &Socket) -> io::Result<NonNull<u8>> {
    let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, socket.as_raw_fd());
    // SAFETY: the kernel chooses the place, and the ring of the socket has this length.
    let memory =
        unsafe { libc::mmap(ptr::null_mut(), BLOCK * BLOCKS, access, libc::MAP_SHARED, fd, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("the ring is mapped at zero"))
}

/// Return the address of all protocols on an interface.
fn address(index: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: any bytes are a valid `sockaddr_ll`, which the storage has room for.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = index as i32;
    // SAFETY: the storage has an address of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
