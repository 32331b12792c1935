//! Waiting for several calls at once, on one task and without a runtime's help.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Runs all futures at the same time and returns their outputs in the order in which they came in.
/// For a handful: each wake-up looks at every one that is not done.
pub(super) async fn together<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    enum Slot<F: Future> {
        Running(Pin<Box<F>>),
        Done(Option<F::Output>),
    }
    let mut slots: Vec<Slot<F>> = futures.into_iter().map(|future| Slot::Running(Box::pin(future))).collect();
    poll_fn(move |context| {
        let mut running = false;
        for slot in &mut slots {
            let Slot::Running(future) = slot else { continue };
            match future.as_mut().poll(context) {
                Poll::Ready(output) => *slot = Slot::Done(Some(output)),
                Poll::Pending => running = true,
            }
        }
        if running {
            return Poll::Pending;
        }
        let output = |slot: &mut Slot<F>| match slot {
            Slot::Done(output) => output.take(),
            Slot::Running(_) => None,
        };
        Poll::Ready(slots.iter_mut().filter_map(output).collect())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Barrier;

    #[tokio::test]
    async fn they_run_at_the_same_time_and_come_back_in_order() {
        let barrier = Barrier::new(3);
        let barrier = &barrier;
        let done = together((0..3).map(|n| async move {
            // Passes only when all three have arrived.
            barrier.wait().await;
            n
        }))
        .await;
        assert_eq!(done, [0, 1, 2]);
        assert_eq!(together(Vec::<std::future::Ready<()>>::new()).await, []);
    }
}
