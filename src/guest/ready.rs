//! Waiting for a guest that is about to be there.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::channel::{ChannelError, Limits};
use crate::world::Interrupt;

/// Why an attempt to reach the guest came to nothing.
#[derive(Debug)]
pub enum Attempt {
    /// It may be different in a moment.
    Again(Box<dyn std::error::Error + Send + Sync>),
    /// It may be different in a moment, but not for long: an SSH server may be up a little before its keys are in place.
    Refused(ChannelError),
    /// Waiting cannot heal it.
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

/// How long a guest may refuse to let nixbox in before that is its last word.
pub const REFUSALS: Duration = Duration::from_secs(15);

/// Repeat `attempt` until it succeeds, with a pause that grows from 5 to 250 ms. `attempt` gets its [`Limits`], whose
/// `reach` is an eighth of the time waited so far, and 200 ms at least: an attempt that begins before the guest listens
/// mostly ends only then, so that is how late a guest is found.
///
/// # Errors
/// [`ChannelError::NotReady`], [`ChannelError::Interrupted`], at once what is [`Attempt::Hopeless`], and what is
/// [`Attempt::Refused`] still [`REFUSALS`] after it was for the first time.
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
