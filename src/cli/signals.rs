//! SIGINT, SIGTERM and SIGHUP: the first asks the operation to stop, the second ends nixbox at once.
//!
//! A separate thread waits for the signals, so that they are handled while the operation's thread is busy.

use std::sync::Arc;

use futures_util::future;
use tokio::signal::unix::{self, SignalKind};

use super::error::{CliError, ExitKind};
use super::progress::ProgressDisplay;
use crate::engine::transition::Interrupt;

/// Starts the thread that handles the signals.
///
/// # Errors
/// If the system refuses a thread or a signal handler.
pub(super) fn listen(interrupt: &Interrupt, progress: &Arc<ProgressDisplay>) -> Result<(), CliError> {
    let failed = CliError::Signals;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let signals = {
        let _context = runtime.enter();
        streams()?
    };
    let (interrupt, progress) = (interrupt.clone(), Arc::clone(progress));
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(handle(signals, &interrupt, &progress))).map_err(failed)?;
    Ok(())
}

/// Waits for the first signal, for a command that has nothing to roll back. It is called within a runtime.
///
/// # Errors
/// If the system refuses a signal handler.
pub(super) fn first() -> Result<impl Future<Output = ()>, CliError> {
    let mut signals = streams()?;
    Ok(async move { next(&mut signals).await })
}

fn streams() -> Result<Vec<unix::Signal>, CliError> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    kinds.into_iter().map(unix::signal).collect::<Result<_, _>>().map_err(CliError::Signals)
}

async fn handle(mut signals: Vec<unix::Signal>, interrupt: &Interrupt, progress: &ProgressDisplay) {
    next(&mut signals).await;
    let direction = if progress.past_commit() {
        "interrupted; the operation is past its commit point and will be completed"
    } else {
        "interrupted; rolling back"
    };
    progress.print(&format!("{direction} (interrupt again to leave the rest to the next run)"));
    interrupt.request();
    next(&mut signals).await;
    progress.print("interrupted again; the next run of nixbox completes or rolls back the operation");
    std::process::exit(ExitKind::Interrupted as i32);
}

/// Waits for the next signal of any kind.
async fn next(signals: &mut [unix::Signal]) {
    future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
}
