//! Kernel statistics of a TCP connection: `TCP_INFO`.
//! No crate in use has a safe call for it.
#![allow(unsafe_code)]

use std::{mem::MaybeUninit, os::fd::AsRawFd, time::Duration};

use tokio::net::TcpStream;

use super::view::TcpView;

/// State of a connection in the kernel, as in `ss -i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Age of the latest bytes in the kernel, read or not.
    pub since_arrival: Duration,
    /// Smoothed round-trip time, and its mean deviation.
    pub round_trip: Duration,
    pub deviation: Duration,
    /// Number of segments retransmitted since the beginning.
    pub retransmitted: u32,
    /// Number of segments that the peer has not acknowledged.
    pub unacknowledged: u32,
}

impl TcpInfo {
    pub fn of(stream: &TcpStream) -> Option<TcpInfo> {
        let info = read(stream)?;
        let microseconds = |count: u32| Duration::from_micros(count.into());
        Some(TcpInfo {
            since_arrival: Duration::from_millis(info.tcpi_last_data_recv.into()),
            round_trip: microseconds(info.tcpi_rtt),
            deviation: microseconds(info.tcpi_rttvar),
            retransmitted: info.tcpi_total_retrans,
            unacknowledged: info.tcpi_unacked,
        })
    }

    pub fn view(&self) -> TcpView {
        let milliseconds = |time: Duration| time.as_micros() as f64 / 1e3;
        TcpView {
            rtt_ms: milliseconds(self.round_trip),
            rtt_deviation_ms: milliseconds(self.deviation),
            retransmitted: self.retransmitted,
            unacknowledged: self.unacknowledged,
        }
    }
}

fn read(stream: &TcpStream) -> Option<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and the kernel writes at
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
    (done == 0).then(|| unsafe { info.assume_init() })
}
