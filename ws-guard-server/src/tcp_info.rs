//! What the kernel knows of a TCP connection: `TCP_INFO`, for which no crate of ours has a safe call.
#![allow(unsafe_code)]

use std::{mem::MaybeUninit, os::fd::AsRawFd, time::Duration};

use tokio::net::TcpStream;

/// How long the latest bytes have been with the kernel, whether they were read or not.
pub fn since_arrival(stream: &TcpStream) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the kernel writes at
    // most `length` bytes, which is the size of `info`.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    // SAFETY: integers alone, all of them zero where the kernel wrote nothing.
    let info = unsafe { info.assume_init() };
    (done == 0).then(|| Duration::from_millis(info.tcpi_last_data_recv.into()))
}
