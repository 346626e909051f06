//! Blocking calls on a thread of their own, so that other futures of the caller's thread go on meanwhile. Uses nothing else of
//! nixbox.
//!
//! A thread that forks waits until the exec of the child is done, which takes tens of milliseconds on a busy machine. Tokio's
//! own thread pool is not used for that, because a caller that is given up does not wait for a thread of the pool: the child
//! could be started after an undo has looked for it.

use std::io;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

/// Runs `act` on a thread of its own, and returns what it returns. If the future is dropped before, the drop blocks until the
/// thread has ended, and drops what `act` has returned.
///
/// # Errors
/// If no thread can be started, or `act` has panicked.
pub(super) async fn on_own_thread<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (result, awaited) = oneshot::channel();
    let thread = std::thread::Builder::new().name("blocking".to_owned()).spawn(move || {
        // Nobody waits for the result any more if the future was dropped.
        drop(result.send(act()));
    })?;
    let thread = JoinedThread(Some(thread));
    let result = awaited.await;
    drop(thread);
    result.map_err(|_| io::Error::other("a thread has panicked"))
}

/// A thread that has ended when this is dropped.
struct JoinedThread(Option<JoinHandle<()>>);

impl Drop for JoinedThread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic is told by the missing result.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    #[tokio::test]
    async fn other_futures_go_on_and_a_panic_is_an_error() {
        let (sender, receiver) = mpsc::channel();
        let blocked = on_own_thread(move || receiver.recv());
        // This future can run only if the other one does not block the thread of both.
        let (received, sent) = tokio::join!(blocked, async move { sender.send("done") });
        assert_eq!((received.unwrap(), sent), (Ok("done"), Ok(())));
        assert!(on_own_thread(|| panic!("of the test")).await.is_err());
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_waits_for_the_thread() {
        let done = Arc::new(AtomicBool::new(false));
        let (begun, begins) = oneshot::channel();
        let act_done = Arc::clone(&done);
        let blocked = on_own_thread(move || {
            begun.send(()).unwrap();
            // Work that takes longer than the drop of a future.
            let hash = blake3::hash(&vec![7; 64 << 20]);
            act_done.store(true, Ordering::SeqCst);
            hash
        });
        tokio::select! {
            biased;
            _ = begins => {}
            _ = blocked => {}
        }
        assert!(done.load(Ordering::SeqCst), "the future was dropped, and its thread still works");
    }
}
