//! Byte stream of a client: which bytes are new, which frames they hold, and when they count.
//!
//! A segment of a known flow takes one of these paths, and ends in [`commit`]:
//!
//! - [`fast_path`]: new bytes in which exactly one frame or record begins;
//! - [`walk`]: new bytes with any number of frames, driven by `bpf_loop`;
//! - [`retransmit`]: bytes that the server has not acknowledged, compared with what passed before
//!   by the flow's traces of frame headers, or those in its [`trail`];
//! - [`out_of_order`]: segments past the cursor, which pass and are judged once the gap is filled.
//!
//! [`midstream`] finds the frames of connections older than the guard. [`tls`] follows records
//! where frames are not visible.

pub mod commit;
pub mod fast_path;
pub mod heartbeat;
pub mod midstream;
pub mod out_of_order;
pub mod retransmit;
pub mod tls;
pub mod trail;
pub mod walk;
