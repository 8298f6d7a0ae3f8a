//! Places for work that takes more than a turn, in a limited number for a thread.
//! The other connections wait in order of arrival. So the duration of a round of turns does not
//! depend on how many have such work, and no more compressors are in use than there are places.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// Number of places in a thread.
const PLACES: usize = 4;

/// Places of one thread.
#[derive(Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Places {
        Places(Arc::new(Semaphore::new(PLACES)))
    }
}

impl Places {
    /// Wait for a place.
    pub fn queue(&self) -> Place {
        Place { queue: PollSemaphore::new(self.0.clone()), place: None }
    }
}

/// Place, or the wait for one; dropping it gives it up.
#[derive(Debug)]
pub struct Place {
    queue: PollSemaphore,
    place: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Ready with a place; otherwise the task is woken when it is its turn.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.place.is_none() {
            match self.queue.poll_acquire(cx) {
                Poll::Pending => return Poll::Pending,
                // It is never closed.
                Poll::Ready(place) => self.place = place,
            }
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn who_waits_longest_is_next_and_whoever_goes_gives_up_the_place() {
        let (places, mut cx) = (Places::default(), Context::from_waker(Waker::noop()));
        let mut taken: Vec<_> = (0..PLACES).map(|_| places.queue()).collect();
        assert!(taken.iter_mut().all(|place| place.poll(&mut cx).is_ready()));
        let [mut gone, mut first, mut second] = [(); 3].map(|()| places.queue());
        for waiting in [&mut gone, &mut first, &mut second] {
            assert!(waiting.poll(&mut cx).is_pending());
        }
        drop(gone);
        taken.pop();
        assert!(second.poll(&mut cx).is_pending() && first.poll(&mut cx).is_ready());
        assert!(first.poll(&mut cx).is_ready(), "it keeps its place");
        taken.pop();
        assert!(second.poll(&mut cx).is_ready());
    }
}
