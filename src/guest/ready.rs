//! Waits for a guest that is booting, by repeated attempts, and for how long.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::channel::{ChannelError, Limits};
use crate::world::{Interrupt, ReadyTimeout};

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

/// How long a guest is waited for.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// The time from the first attempt. A guest that shows a sign of life in the last quarter of it is waited for until it
    /// has shown none for as long as that quarter, and [`ReadyTimeout::STRETCH`] times as long at most: a guest can show
    /// signs of life and never answer.
    pub within: Duration,
    /// Returns something else after each sign of life. The size of the guest's console does.
    pub signs: &'a (dyn Fn() -> Option<u64> + Sync),
}

/// A fixed time, for a guest that shows no signs of life.
impl From<Duration> for Patience<'_> {
    fn from(within: Duration) -> Self {
        Self { within, signs: &|| None }
    }
}

impl Patience<'_> {
    /// Waits until the guest was waited for long enough, and returns how long that was, in whole seconds.
    async fn ends(self) -> Duration {
        const LOOK: Duration = Duration::from_millis(250);
        let since = Instant::now();
        let longest = since + self.within * ReadyTimeout::STRETCH;
        let (mut seen, mut seen_at) = ((self.signs)(), since);
        loop {
            let (now, sign) = (Instant::now(), (self.signs)());
            if sign != seen {
                (seen, seen_at) = (sign, now);
            }
            let end = (since + self.within).max(seen_at + self.within / 4).min(longest);
            if now >= end {
                return Duration::from_secs((now - since).as_secs());
            }
            sleep_until(end.min(now + LOOK)).await;
        }
    }
}

/// Repeats `attempt` until it succeeds, with a pause that grows from 5 to 250 ms. Each attempt gets [`Limits`] whose
/// `reach` is an eighth of the time waited so far, but at least 200 ms. An attempt that begins before the guest listens
/// usually fails only when `reach` is over, so `reach` is also the longest delay before nixbox notices the guest. `connect`
/// is at least the time waited so far: a guest that is busy may take a minute for a login, and would never be reached by
/// attempts that each end before that.
///
/// # Errors
/// [`ChannelError::NotReady`], [`ChannelError::Interrupted`], the error of the first [`Attempt::Hopeless`], and the
/// error of an [`Attempt::Refused`] that comes more than [`REFUSALS`] after the first one.
pub async fn until_ready<T, F: Future<Output = Result<T, Attempt>>>(
    patience: Patience<'_>,
    limits: Limits,
    interrupt: &Interrupt,
    mut attempt: impl FnMut(Limits) -> F,
) -> Result<T, ChannelError> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(250);
    const SHORTEST_REACH: Duration = Duration::from_millis(200);
    let since = Instant::now();
    let mut last: Option<Box<dyn std::error::Error + Send + Sync>> = None;
    let mut refused = None;
    let mut pause = Duration::from_millis(5);
    let trying = async {
        loop {
            let waited = since.elapsed();
            let reach = (waited / 8).max(SHORTEST_REACH).min(limits.reach);
            let connect = waited.max(limits.connect);
            match attempt(Limits { reach, connect, ..limits }).await {
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
    let limit = tokio::select! {
        () = interrupt.wait() => return Err(ChannelError::Interrupted),
        outcome = trying => return outcome,
        waited = patience.ends() => waited,
    };
    Err(ChannelError::NotReady { limit, last })
}
