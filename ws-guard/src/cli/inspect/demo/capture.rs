//! Capture of loopback in a network namespace of the process's own.
//! No other traffic is there, and none is disturbed.

use std::{
    fs,
    io::{self, ErrorKind, IoSliceMut},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
    unistd::{getegid, geteuid},
};
use socket2::{Domain, Protocol, Socket, Type};

/// Socket option of `linux/if_packet.h`: do not receive each packet twice.
const PACKET_IGNORE_OUTGOING: i32 = 23;
/// Time to wait for the last packets.
const TAIL: Duration = Duration::from_millis(200);
/// Size of the receive buffer in bytes.
const BUFFER: usize = 8 << 20;
/// Longest packet on loopback.
const LONGEST: usize = 256 << 10;
/// LINKTYPE_ETHERNET, which loopback has, with addresses of zeros.
const ETHERNET: u32 = 1;

/// Move this thread and its children into a network namespace with loopback.
/// Without root, it is in a new user namespace, which most systems allow.
pub fn isolate() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let flags = match uid.is_root() {
        true => CloneFlags::CLONE_NEWNET,
        false => CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUSER,
    };
    unshare(flags).context("making a network namespace: this system forbids it to users, so run it as root, or read a capture of your own")?;
    if !uid.is_root() {
        fs::write("/proc/self/setgroups", "deny").context("/proc/self/setgroups")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("/proc/self/uid_map")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("/proc/self/gid_map")?;
    }
    loopback_up().context("setting loopback up")
}

fn loopback_up() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as _;
    request.ifr_name[1] = b'o' as _;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as _;
    // SAFETY: the socket is open, and the kernel reads one `ifreq`, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Capture of the namespace's packets by a thread.
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<u8>>>,
}

impl Sniffer {
    pub fn start() -> Result<Sniffer> {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket =
            Socket::new(Domain::PACKET, Type::RAW, Some(all)).context("a packet socket")?;
        ignore_outgoing(&socket).context("a packet socket without outgoing packets")?;
        socket.set_recv_buffer_size(BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        socket.set_read_timeout(Some(TAIL))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || sniff(&socket, &stopped));
        Ok(Sniffer { stop, thread })
    }

    /// Stop, and return the packets as a pcap file with nanosecond times.
    pub fn stop(self) -> Result<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        let packets = self.thread.join().map_err(|_| io::Error::from(ErrorKind::Other))?;
        packets.context("capturing")
    }
}

fn ignore_outgoing(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the socket is open, and the option is an `int`, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receive packets until stopped and idle for a while.
fn sniff(socket: &Socket, stopped: &AtomicBool) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    file.extend(0xA1B2_3C4Du32.to_le_bytes());
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend((LONGEST as u32).to_le_bytes());
    file.extend(ETHERNET.to_le_bytes());
    let mut space = vec![0; LONGEST];
    loop {
        let (length, time) = match receive(socket, &mut space) {
            Ok(received) => received,
            Err(Errno::EAGAIN) if stopped.load(Ordering::Relaxed) => return Ok(file),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for word in [time.tv_sec() as u32, time.tv_nsec() as u32, length as u32, length as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(&space[..length]);
    }
}

/// Receive the next packet with its kernel timestamp.
fn receive(socket: &Socket, space: &mut [u8]) -> nix::Result<(usize, TimeSpec)> {
    let mut control = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(space)];
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
    let received = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags)?;
    let time = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(time),
        _ => None,
    });
    Ok((received.bytes, time.unwrap_or(TimeSpec::from_duration(Duration::ZERO))))
}
