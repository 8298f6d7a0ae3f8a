//! Socket pair between the daemon and the companion server's process.
//!
//! The daemon's end hands over descriptors, one with a byte that names its kind. The other end
//! reads them, and sees the daemon's death as the end of the stream. Everything else is HTTP, over
//! stream sockets that are handed over the same way: the server's process never asks the daemon.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Seek, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    cmsg_space,
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            recvmsg, sendmsg, socketpair,
        },
    },
};

use super::message::Start;

/// Descriptors in a packet: certificate, key and authorities, at most.
const MOST: usize = 3;

/// Handed-over descriptors, by kind.
pub enum Handed {
    /// Configuration for the start of the server.
    Start(File),
    /// Stream for HTTP requests of the daemon.
    Ask(UnixStream),
    /// Reopened access log.
    Log(File),
    /// Certificate, key, and the authorities of clients, if any.
    Certificate(Vec<File>),
}

const START: u8 = b'S';
const ASK: u8 = b'A';
const LOG: u8 = b'L';
const CERTIFICATE: u8 = b'C';

/// Create both ends; neither outlives an exec(2) unless it is made standard input.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Hand descriptors over, without blocking.
pub fn hand(socket: &impl AsFd, handed: &Handed) -> io::Result<()> {
    let (kind, descriptors) = match handed {
        Handed::Start(file) => (START, vec![file.as_raw_fd()]),
        Handed::Ask(stream) => (ASK, vec![stream.as_raw_fd()]),
        Handed::Log(file) => (LOG, vec![file.as_raw_fd()]),
        Handed::Certificate(files) => (CERTIFICATE, files.iter().map(|f| f.as_raw_fd()).collect()),
    };
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(&[kind])], &rights, flags, None)?;
    Ok(())
}

/// Wait for descriptors; `None` when the daemon is gone.
pub fn take(socket: &impl AsFd) -> io::Result<Option<Handed>> {
    let mut kind = [0];
    let mut files = Vec::new();
    {
        let mut slices = [IoSliceMut::new(&mut kind)];
        let mut space = cmsg_space!([std::os::fd::RawFd; MOST]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            let socket = socket.as_fd().as_raw_fd();
            match recvmsg::<()>(socket, &mut slices, Some(&mut space), flags) {
                Err(nix::errno::Errno::EINTR) => {}
                received => break received?,
            }
        };
        if message.bytes == 0 {
            return Ok(None);
        }
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                files.extend(descriptors.into_iter().map(|descriptor| {
                    // SAFETY: the kernel has just made this descriptor for us alone.
                    File::from(unsafe { OwnedFd::from_raw_fd(descriptor) })
                }));
            }
        }
    }
    let strange = || io::Error::other("the daemon handed over what is not known");
    match (kind[0], files.len()) {
        (CERTIFICATE, 2..=MOST) => Ok(Some(Handed::Certificate(files))),
        (kind, 1) => {
            let file = files.remove(0);
            match kind {
                START => Ok(Some(Handed::Start(file))),
                ASK => Ok(Some(Handed::Ask(OwnedFd::from(file).into()))),
                LOG => Ok(Some(Handed::Log(file))),
                _ => Err(strange()),
            }
        }
        _ => Err(strange()),
    }
}

/// Write the start's configuration to a file in memory.
pub fn started_with(start: &Start) -> io::Result<File> {
    let mut file = File::from(memfd_create("ws-guard-start", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(start)?)?;
    file.rewind()?;
    Ok(file)
}

/// Read the start's configuration from that file.
pub fn read_start(mut file: File) -> io::Result<Start> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
