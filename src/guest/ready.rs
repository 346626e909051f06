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
    /// Waiting cannot heal it.
    Hopeless(ChannelError),
}

impl From<ChannelError> for Attempt {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::HostKey(_) => Self::Hopeless(error),
            _ => Self::Again(Box::new(error)),
        }
    }
}

/// Repeat `attempt` until it succeeds, with a pause that grows from 5 to 250 ms. `attempt` gets its [`Limits`], whose
/// `reach` is an eighth of the time waited so far, and 200 ms at least: an attempt that begins before the guest listens
/// mostly ends only then, so that is how late a guest is found.
///
/// # Errors
/// [`ChannelError::NotReady`], [`ChannelError::Interrupted`], and at once what is [`Attempt::Hopeless`].
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
    let mut last = None;
    let mut pause = Duration::from_millis(5);
    let trying = async {
        loop {
            let reach = (since.elapsed() / 8).max(SHORTEST_REACH).min(limits.reach);
            match attempt(Limits { reach, ..limits }).await {
                Ok(value) => return Ok(value),
                Err(Attempt::Hopeless(error)) => return Err(error),
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
