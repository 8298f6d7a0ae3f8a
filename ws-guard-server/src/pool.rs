//! Buffers that a connection holds only while there is data in them.
//!
//! Each thread keeps a few, and lends them to connections with bytes to read or write: ten
//! thousand idle connections hold none.

use std::cell::RefCell;

use bytes::BytesMut;

/// Size of a lent buffer in bytes: a message of 64 KiB and its header, twice.
pub const ROOM: usize = 132 * 1024;
/// Minimum free space of a read that is worth its system call.
const WORTH_READING: usize = 16 * 1024;
/// Number of buffers of a kind that a thread keeps.
const KEPT: usize = 4;
/// Maximum ratio of a kept buffer to its content.
const SLACK: usize = 4;
/// Size below which shrinking a buffer gains nothing.
const SMALL: usize = 1024;

thread_local! {
    static READ: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static WRITE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Make room in `buffer` for a read; its content stays at the front.
pub fn borrow_read(buffer: &mut BytesMut) {
    // First the space after the bytes, then that before them.
    let free = buffer.capacity() - buffer.len();
    if free >= WORTH_READING || buffer.capacity() > 0 && buffer.try_reclaim(ROOM / 2) {
        return;
    }
    if buffer.len() >= ROOM / 2 {
        // A long message: as much again as was received, so that announcing a length gains no
        // memory.
        buffer.reserve(buffer.len());
        return;
    }
    let mut room =
        READ.with_borrow_mut(|kept| kept.pop()).unwrap_or_else(|| BytesMut::with_capacity(ROOM));
    room.extend_from_slice(buffer);
    *buffer = room;
}

/// Return a buffer; one with bytes in it keeps them, in memory of their size.
pub fn return_read(buffer: &mut BytesMut) {
    let fits = buffer.capacity() <= SMALL.max(buffer.len() * SLACK);
    if fits && !buffer.is_empty() || buffer.capacity() == 0 {
        return;
    }
    let mut room = std::mem::take(buffer);
    if !room.is_empty() {
        buffer.extend_from_slice(&room);
        room.clear();
    }
    // Messages may still refer to it; then it is freed with them.
    if room.try_reclaim(ROOM) && room.capacity() < 2 * ROOM {
        READ.with_borrow_mut(|kept| {
            if kept.len() < KEPT {
                kept.push(room);
            }
        });
    }
}

/// Return an empty buffer for writing.
pub fn borrow_write() -> Vec<u8> {
    WRITE.with_borrow_mut(|kept| kept.pop()).unwrap_or_default()
}

/// Return a buffer that was written.
pub fn return_write(buffer: &mut Vec<u8>) {
    let mut room = std::mem::take(buffer);
    room.clear();
    if room.capacity() > 0 && room.capacity() <= 2 * ROOM {
        WRITE.with_borrow_mut(|kept| {
            if kept.len() < KEPT {
                kept.push(room);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_buffer_goes_back_and_is_lent_again() {
        let mut buffer = BytesMut::new();
        borrow_read(&mut buffer);
        let memory = buffer.as_ptr();
        buffer.extend_from_slice(b"message");
        drop(buffer.split_to(7).freeze());
        return_read(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        borrow_read(&mut buffer);
        assert_eq!((buffer.as_ptr(), buffer.capacity() >= ROOM), (memory, true));
    }

    #[test]
    fn what_is_left_keeps_memory_of_its_size() {
        let mut buffer = BytesMut::new();
        borrow_read(&mut buffer);
        buffer.extend_from_slice(&[7; 300]);
        return_read(&mut buffer);
        assert_eq!(buffer, [7; 300].as_slice());
        assert!(buffer.capacity() <= SMALL);
        borrow_read(&mut buffer);
        assert_eq!((&buffer[..], buffer.capacity() >= ROOM), ([7; 300].as_slice(), true));
    }

    #[test]
    fn a_long_message_grows_with_what_came() {
        let mut buffer = BytesMut::new();
        for _ in 0..100 {
            borrow_read(&mut buffer);
            let free = buffer.capacity() - buffer.len();
            assert!(free >= WORTH_READING && buffer.capacity() <= (3 * buffer.len()).max(2 * ROOM));
            buffer.resize(buffer.len() + free.min(10_000), 0);
        }
        assert_eq!(buffer.len(), 1_000_000);
    }

    #[test]
    fn a_message_that_is_still_in_use_keeps_its_memory() {
        let mut buffer = BytesMut::new();
        borrow_read(&mut buffer);
        buffer.extend_from_slice(b"message");
        let message = buffer.split_to(7).freeze();
        return_read(&mut buffer);
        borrow_read(&mut buffer);
        buffer.extend_from_slice(b"another");
        assert_eq!(message, "message");
    }
}
