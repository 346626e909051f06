//! Waits for a guest that is booting, by repeated attempts.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::channel::{ChannelError, Limits};
use crate::world::Interrupt;

/// Why an attempt to reach the guest failed, and whether to repeat it.
#[derive(Debug)]
pub enum Attempt {
    /// The next attempt may succeed.
    Again(Box<dyn std::error::Error + Send + Sync>),
    /// The guest refused the key. The next attempts may succeed for [`REFUSALS`], because an SSH server may be up a
    /// little before the user's keys are in place.
    Refused(ChannelError),
    /// No later attempt can succeed.
    Hopeless(ChannelError),
}

impl From<ChannelError> for Attempt {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::HostKey(_) => Self::Hopeless(error),
            ChannelError::Denied { .. } => Self::Refused(error),
            _ => Self::Again(Box::new(error)),
        }
    }
}

/// How long a guest may refuse the key before nixbox gives up.
pub const REFUSALS: Duration = Duration::from_secs(15);

/// Repeats `attempt` until it succeeds, with a pause that grows from 5 to 250 ms. Each attempt gets [`Limits`] whose
/// `reach` is an eighth of the time waited so far, but at least 200 ms. An attempt that begins before the guest listens
/// usually fails only when `reach` is over, so `reach` is also the longest delay before nixbox notices the guest.
///
/// # Errors
/// [`ChannelError::NotReady`], [`ChannelError::Interrupted`], the error of the first [`Attempt::Hopeless`], and the
/// error of an [`Attempt::Refused`] that comes more than [`REFUSALS`] after the first one.
pub async fn until_ready<T, F: Future<Output = Result<T, Attempt>>>(
    within: Duration,
    limits: Limits,
    interrupt: &Interrupt,
    mut attempt: impl FnMut(Limits) -> F,
) -> Result<T, ChannelError> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(250);
    const SHORTEST_REACH: Duration = Duration::from_millis(200);
    let since = Instant::now();
    let deadline = since + within;
    let mut last: Option<Box<dyn std::error::Error + Send + Sync>> = None;
    let mut refused = None;
    let mut pause = Duration::from_millis(5);
    let trying = async {
        loop {
            let reach = (since.elapsed() / 8).max(SHORTEST_REACH).min(limits.reach);
            match attempt(Limits { reach, ..limits }).await {
                Ok(value) => return Ok(value),
                Err(Attempt::Hopeless(error)) => return Err(error),
                Err(Attempt::Refused(error))
                    if refused.get_or_insert_with(Instant::now).elapsed() > REFUSALS =>
                {
                    return Err(error);
                }
                Err(Attempt::Refused(error)) => last = Some(Box::new(error)),
                Err(Attempt::Again(error)) => last = Some(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    let outcome = tokio::select! {
        () = interrupt.wait() => return Err(ChannelError::Interrupted),
        outcome = timeout_at(deadline, trying) => outcome,
    };
    outcome.unwrap_or(Err(ChannelError::NotReady { limit: within, last }))
}
