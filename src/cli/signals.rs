//! SIGINT, SIGTERM and SIGHUP: the first asks the operation to stop, the second ends nixbox at once.
//!
//! They are waited for on a thread of their own, so that they are heard while the operation's thread is busy.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::error::{ExitKind, Problem};
use super::progress::ProgressDisplay;
use crate::engine::transition::Interrupt;

#[derive(Debug, thiserror::Error)]
#[error("cannot listen for signals")]
struct Deaf(#[source] std::io::Error);

/// Listens from now on.
///
/// # Errors
/// If the system has no thread or handler to give.
pub(super) fn listen(interrupt: &Interrupt, show: &Arc<ProgressDisplay>) -> Result<(), Problem> {
    let deaf = |error| Problem::new(ExitKind::Failed, Deaf(error));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(deaf)?;
    let signals = {
        let _context = runtime.enter();
        let all = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        all.into_iter().map(signal).collect::<Result<Vec<_>, _>>().map_err(deaf)?
    };
    let (interrupt, show) = (interrupt.clone(), Arc::clone(show));
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(heed(signals, &interrupt, &show))).map_err(deaf)?;
    Ok(())
}

async fn heed(mut signals: Vec<tokio::signal::unix::Signal>, interrupt: &Interrupt, show: &ProgressDisplay) {
    any(&mut signals).await;
    let way = if show.past_commit() {
        "interrupted; it is past the point of no return and will be finished"
    } else {
        "interrupted; rolling back"
    };
    show.say(&format!("{way} (interrupt again to leave the rest to the next run)"));
    interrupt.request();
    any(&mut signals).await;
    show.say("interrupted again; the next run finishes or takes back what is left");
    std::process::exit(ExitKind::Interrupted as i32);
}

async fn any(signals: &mut [tokio::signal::unix::Signal]) {
    let all = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(all).await;
}
