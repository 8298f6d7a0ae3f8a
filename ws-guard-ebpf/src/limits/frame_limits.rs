//! Limits per connection for each class of other frames and of TLS records.

use ws_guard_common::{flow::Flow, maps::Counter, source::millis, verifier::forget};

use crate::{
    context::Context,
    cpu,
    limits::{at_hand, charge},
    maps::locked,
    report,
};

/// Charge the current connection with the frames of the committed walk, by class.
/// `true` when the segment is to be dropped.
#[inline(always)]
pub fn charge(context: &Context, flow: &mut Flow) -> bool {
    let over = ws_guard_floods(context.now);
    if over == 0 {
        return false;
    }
    report::add(Counter::FramesOver, over.into());
    charge::flood(context, flow, over)
}

/// Number of frames over a limit.
/// Its name is in the object's BTF: the verifier checks it once, on its own.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ws_guard_floods(now: u64) -> u32 {
    let (Some(state), Some((flow, policy))) = (cpu::resume(), at_hand()) else {
        return 0;
    };
    let (now_ms, window_ms) = (millis(now), policy.rate.window_ms);
    let over = locked(
        flow,
        #[inline(always)]
        |flow| flow.classes.charge(now_ms, &policy.class_limits, window_ms, &state.counted.classes),
    );
    forget(over, now_ms)
}
