//! Gives a restored guest random numbers of its own and the right time, before anything else is done in it.
//!
//! Two guests that are restored from one snapshot draw the same random numbers until their kernels reseed, which takes
//! up to a minute (Linux 6.x, `CRNG_RESEED_INTERVAL`). Bytes written to `/dev/urandom` have no effect before that
//! reseed. The `ioctl` `RNDRESEEDCRNG` forces it, and needs root. No shell and no applet of the usual busybox builds
//! makes this call (`seedrng` credits entropy and does not reseed), and a guest may have neither python nor perl. So
//! nixbox sends a program of some hundred bytes, `clock_helper.s`, over the connection. The guest writes it to a
//! directory in memory if there is one, runs it and removes it.
//!
//! The same program sets the clock, because `date` is not exact enough: Debian's busybox `date` does not support `%N`
//! and sets whole seconds only. nixbox measures how far the guest's clock is from the host's as NTP does, by the
//! fastest of several round trips, and corrects it by `adjtimex(ADJ_SETOFFSET)`. A correction by a difference stays
//! right even if it arrives late.
//!
//! Without entropy the clock is not set. There is no fallback for either.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time::timeout;
use zeroize::Zeroizing;

use super::channel::CommandExit;
use super::clock_helper;
pub use super::clock_helper::ELF_MAGIC;
use super::shell::{Dialogue, Rights, ScriptError, Shell};

/// How far the guest's clock may be from the host's after it was set, including the uncertainty of the measurement.
pub const CLOCK_TOLERANCE: Duration = Duration::from_millis(50);

/// The time limit of each of the two.
const LIMIT: Duration = Duration::from_secs(30);

const ENTROPY_BYTES: usize = 512;
const POOL_INFO_BYTES: usize = ENTROPY_BYTES + 8;
const TIMEX_BYTES: usize = 208;
const MOST_SAMPLES: usize = 16;

/// Why a guest could not be settled.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SettleError {
    #[error("cannot get random bytes for the guest")]
    Random(#[source] getrandom::Error),
    #[error("cannot give fresh entropy to a guest with the processor {0:?}: only x86_64 is supported")]
    Processor(String),
    #[error("the guest's kernel could not be given fresh entropy and the time: {why}")]
    Refused { why: &'static str, source: Box<ScriptError> },
    #[error("cannot give the guest fresh entropy and the time")]
    Script(#[source] Box<ScriptError>),
    #[error("entropy and the time were not given to the guest within {LIMIT:?}")]
    Slow,
    #[error("the host's clock cannot be used")]
    HostClock,
    #[error("the guest's clock is still {off:?} (± {uncertainty:?}) from the host's after it was set")]
    Clock { off: Duration, uncertainty: Duration },
}

impl From<ScriptError> for SettleError {
    fn from(source: ScriptError) -> Self {
        let why = match &source {
            ScriptError::Failed { exit: CommandExit::Status(status), .. } => match status {
                10 => "it has no /dev/urandom that root may write to",
                12 => "it refuses RNDADDENTROPY",
                13 => "it refuses RNDRESEEDCRNG, which Linux knows since 4.17",
                16 => "it refuses adjtimex with ADJ_SETOFFSET",
                126 => "there is no directory to run a program from (/dev/shm, /run, /tmp, the home)",
                _ => return Self::Script(Box::new(source)),
            },
            _ => return Self::Script(Box::new(source)),
        };
        Self::Refused { why, source: Box::new(source) }
    }
}

/// A measurement of the guest's clock against the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// The guest's time minus the host's, in nanoseconds.
    pub nanoseconds: i128,
    /// The largest error of the measurement, in nanoseconds: half of the round trip.
    pub uncertainty: i128,
}

impl ClockOffset {
    /// Computes the offset from the host's time at the question, the duration of the round trip, and the time that the
    /// guest answered, all in nanoseconds.
    fn new(asked: i128, took: i128, guest: i128) -> Self {
        let uncertainty = took / 2;
        Self { nanoseconds: guest - asked - uncertainty, uncertainty }
    }

    /// Whether the clocks differ by more than the uncertainty.
    fn differ(self) -> bool {
        self.nanoseconds.abs() > self.uncertainty
    }

    fn worst(self) -> i128 {
        self.nanoseconds.abs() + self.uncertainty
    }
}

/// What a guest was not given.
#[derive(Debug, thiserror::Error)]
pub enum Unsettled {
    /// Fresh entropy, and the time, which is set after it.
    #[error(transparent)]
    Entropy(SettleError),
    /// The time.
    #[error(transparent)]
    Clock(SettleError),
}

/// Gives the guest's kernel fresh entropy, makes it reseed, and sets its clock. Returns the remaining offset of the
/// clock.
///
/// # Errors
/// Any [`SettleError`]. The source of the error is [`ScriptError::NoRights`] if the user is not root and has no `sudo`.
pub async fn settle(shell: &Shell) -> Result<ClockOffset, Unsettled> {
    check_processor(shell).map_err(Unsettled::Entropy)?;
    let started = timeout(LIMIT, start(shell)).await.unwrap_or(Err(SettleError::Slow));
    let helper = started.map_err(Unsettled::Entropy)?;
    timeout(LIMIT, set_clock(helper)).await.unwrap_or(Err(SettleError::Slow)).map_err(Unsettled::Clock)
}

/// Tries what [`settle`] does, and changes no clock: the guest's kernel gets fresh entropy, which does no harm, and its
/// clock is measured.
///
/// # Errors
/// Those of [`settle`].
pub async fn attempt(shell: &Shell) -> Result<(), SettleError> {
    check_processor(shell)?;
    let measured = async {
        let mut helper = start(shell).await?;
        measure(&mut helper).await?;
        Ok(helper.finish().await?)
    };
    timeout(LIMIT, measured).await.unwrap_or(Err(SettleError::Slow))
}

fn check_processor(shell: &Shell) -> Result<(), SettleError> {
    if shell.facts.processor == "x86_64" {
        Ok(())
    } else {
        Err(SettleError::Processor(shell.facts.processor.clone()))
    }
}

/// Starts the program in the guest, and gives the guest entropy by it.
async fn start(shell: &Shell) -> Result<Dialogue, SettleError> {
    let what = "give the guest fresh entropy and the time";
    let mut helper = shell.converse(what, Rights::Root, &script()).await?;
    helper.send(entropy()?).await?;
    // The first answer of the program means that the kernel has reseeded.
    helper.receive::<16>().await?;
    Ok(helper)
}

async fn set_clock(mut helper: Dialogue) -> Result<ClockOffset, SettleError> {
    let mut clock_offset = measure(&mut helper).await?;
    // The clock is not changed if the difference is below the uncertainty.
    if clock_offset.differ() {
        exchange(&mut helper, Some(-clock_offset.nanoseconds)).await?;
        clock_offset = measure(&mut helper).await?;
    }
    helper.finish().await?;
    if clock_offset.worst() > tolerance() {
        let duration = |nanoseconds: i128| {
            Duration::from_nanos(u64::try_from(nanoseconds.unsigned_abs()).unwrap_or(u64::MAX))
        };
        let ClockOffset { nanoseconds, uncertainty } = clock_offset;
        return Err(SettleError::Clock { off: duration(nanoseconds), uncertainty: duration(uncertainty) });
    }
    Ok(clock_offset)
}

fn tolerance() -> i128 {
    i128::try_from(CLOCK_TOLERANCE.as_nanos()).unwrap_or(i128::MAX)
}

/// Builds a `struct rand_pool_info` (`linux/random.h`): the number of bits to credit, the number of bytes, and the
/// bytes.
fn entropy() -> Result<Zeroizing<Vec<u8>>, SettleError> {
    let mut frame = Zeroizing::new(vec![0_u8; POOL_INFO_BYTES]);
    let (head, bytes) = frame.split_at_mut(8);
    head[..4].copy_from_slice(&(8 * ENTROPY_BYTES as u32).to_le_bytes());
    head[4..].copy_from_slice(&(ENTROPY_BYTES as u32).to_le_bytes());
    getrandom::fill(bytes).map_err(SettleError::Random)?;
    Ok(frame)
}

/// Builds a `struct timex` (`linux/timex.h`, 64 bits) that adds `shift` nanoseconds to the clock, or changes nothing if
/// `shift` is `None`.
fn timex(shift: Option<i128>) -> Zeroizing<Vec<u8>> {
    const ADJ_SETOFFSET: u32 = 0x0100;
    const ADJ_NANO: u32 = 0x2000;
    let mut frame = vec![0_u8; TIMEX_BYTES];
    if let Some(shift) = shift {
        let second = 1_000_000_000;
        let seconds = i64::try_from(shift.div_euclid(second)).unwrap_or(i64::MAX);
        // The kernel requires nanoseconds from 0 to 10⁹, for a negative shift too.
        let nanoseconds = i64::try_from(shift.rem_euclid(second)).unwrap_or_default();
        frame[..4].copy_from_slice(&(ADJ_SETOFFSET | ADJ_NANO).to_le_bytes());
        frame[72..80].copy_from_slice(&seconds.to_le_bytes());
        frame[80..88].copy_from_slice(&nanoseconds.to_le_bytes());
    }
    Zeroizing::new(frame)
}

/// Takes samples until one is good enough, and returns the best. A sample is good enough if its uncertainty is below a
/// quarter of the tolerance, because each further sample is a round trip that delays the restore.
async fn measure(helper: &mut Dialogue) -> Result<ClockOffset, SettleError> {
    let mut best: Option<ClockOffset> = None;
    for _ in 0..MOST_SAMPLES {
        let sample = exchange(helper, None).await?;
        if best.is_none_or(|best| sample.uncertainty < best.uncertainty) {
            best = Some(sample);
        }
        if sample.uncertainty < tolerance() / 4 {
            break;
        }
    }
    best.ok_or(SettleError::HostClock)
}

/// Sends one `timex`, and compares the time that comes back with the host's.
async fn exchange(helper: &mut Dialogue, shift: Option<i128>) -> Result<ClockOffset, SettleError> {
    let frame = timex(shift);
    let nanoseconds =
        |duration: Duration| i128::try_from(duration.as_nanos()).map_err(|_| SettleError::HostClock);
    let asked = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| SettleError::HostClock)?;
    let clock = Instant::now();
    helper.send(frame).await?;
    let told = helper.receive::<16>().await?;
    let took = clock.elapsed();
    let word = |at: usize| i128::from(i64::from_le_bytes(std::array::from_fn(|byte| told[at + byte])));
    Ok(ClockOffset::new(nanoseconds(asked)?, nanoseconds(took)?, word(0) * 1_000_000_000 + word(8)))
}

/// The program in the form that the shell's `printf` writes as bytes: every byte in octal.
#[must_use]
pub fn program() -> String {
    octal(&clock_helper::elf())
}

/// Writes bytes as octal escapes for `printf`.
#[must_use]
pub fn octal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

/// Writes the program to the first directory that programs can be run from, runs it with the rest of stdin as its
/// input, and removes it. Run without input, the program ends with status 11, which shows that the directory is not
/// mounted `noexec`.
fn script() -> String {
    let octal = program();
    format!(
        r#"for d in /dev/shm /run /tmp "$HOME"; do
  f=$d/.nixbox-settle.$$
  (set -C; printf '{octal}' > "$f") 2>/dev/null || continue
  chmod 700 "$f" && "$f" < /dev/null > /dev/null 2>&1
  case $? in
    126|127) rm -f "$f"; continue ;;
  esac
  "$f"
  s=$?
  rm -f "$f"
  exit $s
done
exit 126"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_measured_at_the_middle_of_the_round_trip() {
        let sample = ClockOffset::new(1_000, 100, 1_550);
        assert_eq!(sample, ClockOffset { nanoseconds: 500, uncertainty: 50 });
        assert!(sample.differ() && !ClockOffset::new(1_000, 100, 1_020).differ());
        assert_eq!(ClockOffset::new(1_000, 100, 550).worst(), 550);
    }

    #[test]
    fn a_negative_shift_has_nanoseconds_above_zero() {
        let words = |shift| {
            let frame = timex(Some(shift));
            let word = |at: usize| i64::from_le_bytes(frame[at..at + 8].try_into().unwrap());
            (frame.len(), word(0), word(72), word(80))
        };
        assert_eq!(words(1_500_000_000), (208, 0x2100, 1, 500_000_000));
        assert_eq!(words(-1), (208, 0x2100, -1, 999_999_999));
        assert!(timex(None).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn entropy_is_fresh_and_credited() {
        let (one, two) = (entropy().unwrap(), entropy().unwrap());
        assert_eq!((one.len(), &one[..8]), (520, &[0, 16, 0, 0, 0, 2, 0, 0][..]));
        assert_ne!(one[8..264], two[8..264]);
        assert_ne!(one[264..], two[264..]);
        assert_ne!(one[8..264], one[264..]);
    }
}
