//! The threads that read one file together.

use std::sync::Arc;
use std::thread;

use futures_util::future::join_all;

use super::{CopyError, Result};
use crate::files::extents::BLOCK;
use crate::world::Interrupt;

/// More threads than this gain nothing on one disk or one memory bus.
pub(super) const MAX_THREADS: usize = 8;

/// Runs `work` on as many threads as are of use for so many bytes, until each has returned. If one fails, `stop` is
/// requested, and the others are expected to return [`CopyError::Interrupted`].
pub(super) async fn on_threads(
    bytes: u64,
    stop: &Interrupt,
    work: impl Fn() -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let blocks = usize::try_from(bytes.div_ceil(BLOCK)).unwrap_or(MAX_THREADS);
    let work = Arc::new(work);
    let running = (0..threads.min(blocks).max(1)).map(|_| {
        let (work, stop) = (Arc::clone(&work), stop.clone());
        tokio::task::spawn_blocking(move || work().inspect_err(|_| stop.request()))
    });
    let mut interrupted = false;
    let mut failed = None;
    for ended in join_all(running).await {
        match ended.map_err(CopyError::Thread).flatten() {
            Ok(()) => {}
            // The failure of one thread interrupts the others. The failure is the reason, and is returned.
            Err(CopyError::Interrupted) => interrupted = true,
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None if interrupted => Err(CopyError::Interrupted),
        None => Ok(()),
    }
}
