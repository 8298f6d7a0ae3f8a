//! The header decoder against the oracle's. First byte: flags; then a header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ws_guard_common::frame::{Expect, Header, Incomplete};
use ws_guard_oracle::frames::{self, Side};

fuzz_target!(|data: &[u8]| {
    let Some((flags, bytes)) = data.split_first() else { return };
    let expect =
        Expect { from_client: flags & 1 != 0, rsv1_agreed: flags & 2 != 0, in_message: false };
    let side = Side { from_client: expect.from_client, deflate: expect.rsv1_agreed };
    let expected = frames::frames(bytes, side).into_iter().next();
    let known = expected.as_ref().and_then(|frame| frame.header_end.zip(frame.end));
    match Header::decode(bytes) {
        Err(Incomplete { needed }) => {
            assert!(needed > bytes.len() && known.is_none());
        }
        Ok(header) => {
            let frame = expected.expect("there is a first byte");
            let (header_end, end) = known.expect("the length is there");
            assert_eq!(header.opcode(), frame.opcode);
            assert_eq!(header.len() as u128, header_end);
            assert_eq!(u128::from(header.payload_len % (1 << 63)), end - header_end);
            assert!(header.violations(expect).iter().eq(frame.violations));
        }
    }
});
