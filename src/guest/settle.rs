//! What a guest needs first after it was restored: random numbers of its own, and the right time.
//!
//! Two guests restored from one snapshot draw the same random numbers until their kernels reseed, which is up to a minute
//! (Linux 6.x, `CRNG_RESEED_INTERVAL`). Bytes written to `/dev/urandom` wait for that reseed; only `RNDRESEEDCRNG` forces
//! it, and it is an `ioctl` of root's. No shell and no busybox applet of the usual builds makes one (`seedrng` neither:
//! it credits, and does not reseed), and a guest need not have python or perl. So nixbox brings a program of some hundred
//! bytes, sent over the connection, run from memory (`/dev/shm` first) and removed: `clock_helper.s`.
//!
//! The same program sets the clock, since `date` cannot do it well enough (busybox's in Debian knows no `%N` and sets
//! whole seconds). The guest's distance from the host's clock is measured as NTP does it, by the fastest of several round
//! trips, and taken away by `adjtimex(ADJ_SETOFFSET)`: a distance is right however late it arrives.
//!
//! Without either, the guest is not settled: there is no second best here.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::channel::CommandExit;
use super::clock_helper;
pub use super::clock_helper::ELF_MAGIC;
use super::shell::{Dialogue, Rights, ScriptError, Shell};

/// How far from the host's clock the guest's may be afterwards, uncertainty included.
pub const CLOCK_TOLERANCE: Duration = Duration::from_millis(50);

/// Time for all of it.
const LIMIT: Duration = Duration::from_secs(30);

const ENTROPY_BYTES: usize = 512;
const POOL_INFO_BYTES: usize = ENTROPY_BYTES + 8;
const TIMEX_BYTES: usize = 208;
const MOST_SAMPLES: usize = 16;

/// Why a guest could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The host has no random bytes.
    #[error("cannot get random bytes for the guest")]
    Random(#[source] std::io::Error),
    /// The guest's processor is not one that the program is made for.
    #[error("cannot give fresh entropy to a guest with the processor {0:?}: only x86_64 is supported")]
    Processor(String),
    /// The program could not be run, or what it asked of the guest's kernel was refused.
    #[error("the guest's kernel could not be given fresh entropy and the time: {why}")]
    Refused {
        /// What was refused.
        why: &'static str,
        /// What the guest says.
        source: Box<ScriptError>,
    },
    /// Something else went wrong in the guest.
    #[error("cannot settle the guest")]
    Script(#[source] Box<ScriptError>),
    /// It took too long.
    #[error("the guest was not settled within {LIMIT:?}")]
    Slow,
    /// The host's own clock is before 1970, or jumped.
    #[error("the host's clock cannot be used")]
    HostClock,
    /// The clock is still wrong.
    #[error("the guest's clock is {off:?} from the host's, give or take {uncertainty:?}, after it was set")]
    Clock {
        /// The distance.
        off: Duration,
        /// Half of the fastest round trip.
        uncertainty: Duration,
    },
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

/// How well the guest's clock agrees with the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The guest's time less the host's, in nanoseconds.
    pub offset: i128,
    /// At most so much more or less, in nanoseconds: half of the round trip.
    pub uncertainty: i128,
}

impl Agreement {
    /// From the host's time when it asked, how long the answer took, and what the guest said; nanoseconds all.
    fn new(asked: i128, took: i128, guest: i128) -> Self {
        let uncertainty = took / 2;
        Self { offset: guest - asked - uncertainty, uncertainty }
    }

    /// Whether the clocks differ for certain.
    fn differ(self) -> bool {
        self.offset.abs() > self.uncertainty
    }

    fn worst(self) -> i128 {
        self.offset.abs() + self.uncertainty
    }
}

/// Give the guest's kernel fresh entropy and have it reseed, then set its clock. Says how well the clocks agree then.
///
/// # Errors
/// Those of [`SettleError`]; [`ScriptError::NoRights`] in it where the user is neither root nor has `sudo`.
pub async fn settle(shell: &Shell) -> Result<Agreement, SettleError> {
    if shell.facts.processor != "x86_64" {
        return Err(SettleError::Processor(shell.facts.processor.clone()));
    }
    timeout(LIMIT, settle_unhurried(shell)).await.unwrap_or(Err(SettleError::Slow))
}

async fn settle_unhurried(shell: &Shell) -> Result<Agreement, SettleError> {
    let what = "give the guest fresh entropy and the time";
    let mut settler = shell.converse(what, Rights::Root, &script()).await?;
    settler.send(entropy()?).await?;
    // Its first word: the kernel has reseeded.
    settler.receive::<16>().await?;
    let mut agreement = measure(&mut settler).await?;
    // A clock that may be right is left alone.
    if agreement.differ() {
        ask(&mut settler, Some(-agreement.offset)).await?;
        agreement = measure(&mut settler).await?;
    }
    settler.finish().await?;
    if agreement.worst() > tolerance() {
        let duration = |nanoseconds: i128| {
            Duration::from_nanos(u64::try_from(nanoseconds.unsigned_abs()).unwrap_or(u64::MAX))
        };
        let Agreement { offset, uncertainty } = agreement;
        return Err(SettleError::Clock { off: duration(offset), uncertainty: duration(uncertainty) });
    }
    Ok(agreement)
}

fn tolerance() -> i128 {
    i128::try_from(CLOCK_TOLERANCE.as_nanos()).unwrap_or(i128::MAX)
}

/// `struct rand_pool_info` (`linux/random.h`): bits to credit, bytes that follow, the bytes.
fn entropy() -> Result<Zeroizing<Vec<u8>>, SettleError> {
    let mut frame = Zeroizing::new(vec![0_u8; POOL_INFO_BYTES]);
    let (head, bytes) = frame.split_at_mut(8);
    head[..4].copy_from_slice(&(8 * ENTROPY_BYTES as u32).to_le_bytes());
    head[4..].copy_from_slice(&(ENTROPY_BYTES as u32).to_le_bytes());
    // Up to 256 bytes come whole once the pool is ready (random(7)).
    for chunk in bytes.chunks_mut(256) {
        getrandom(chunk, GetRandomFlags::empty()).map_err(|error| SettleError::Random(error.into()))?;
    }
    Ok(frame)
}

/// `struct timex` (`linux/timex.h`, 64 bits): nothing to change, or nanoseconds to add to the clock.
fn timex(shift: Option<i128>) -> Zeroizing<Vec<u8>> {
    const ADJ_SETOFFSET: u32 = 0x0100;
    const ADJ_NANO: u32 = 0x2000;
    let mut frame = vec![0_u8; TIMEX_BYTES];
    if let Some(shift) = shift {
        let second = 1_000_000_000;
        let seconds = i64::try_from(shift.div_euclid(second)).unwrap_or(i64::MAX);
        // Within 0 and 10⁹, as the kernel wants it for a negative shift too.
        let nanoseconds = i64::try_from(shift.rem_euclid(second)).unwrap_or_default();
        frame[..4].copy_from_slice(&(ADJ_SETOFFSET | ADJ_NANO).to_le_bytes());
        frame[72..80].copy_from_slice(&seconds.to_le_bytes());
        frame[80..88].copy_from_slice(&nanoseconds.to_le_bytes());
    }
    Zeroizing::new(frame)
}

/// The best of several samples. The first good one will do: the clock is then right to within a quarter of what it has to
/// be, and each further sample would be a round trip that somebody waits for.
async fn measure(settler: &mut Dialogue) -> Result<Agreement, SettleError> {
    let mut best: Option<Agreement> = None;
    for _ in 0..MOST_SAMPLES {
        let sample = ask(settler, None).await?;
        if best.is_none_or(|best| sample.uncertainty < best.uncertainty) {
            best = Some(sample);
        }
        if sample.uncertainty < tolerance() / 4 {
            break;
        }
    }
    best.ok_or(SettleError::HostClock)
}

/// Send one `timex`, and compare the time that comes back.
async fn ask(settler: &mut Dialogue, shift: Option<i128>) -> Result<Agreement, SettleError> {
    let frame = timex(shift);
    let nanoseconds =
        |duration: Duration| i128::try_from(duration.as_nanos()).map_err(|_| SettleError::HostClock);
    let asked = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| SettleError::HostClock)?;
    let clock = Instant::now();
    settler.send(frame).await?;
    let told = settler.receive::<16>().await?;
    let took = clock.elapsed();
    let word = |at: usize| i128::from(i64::from_le_bytes(std::array::from_fn(|byte| told[at + byte])));
    Ok(Agreement::new(nanoseconds(asked)?, nanoseconds(took)?, word(0) * 1_000_000_000 + word(8)))
}

/// The program as `printf` takes it: every byte in octal.
#[must_use]
pub fn program() -> String {
    octal(&clock_helper::elf())
}

/// Bytes as `printf` takes them: each in octal.
#[must_use]
pub fn octal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

/// Writes the program where it can be run, runs it on what follows on stdin, removes it. With no input it ends with 11,
/// which shows that the place allows programs.
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
    fn the_distance_is_from_the_middle_of_the_round_trip() {
        let sample = Agreement::new(1_000, 100, 1_550);
        assert_eq!(sample, Agreement { offset: 500, uncertainty: 50 });
        assert!(sample.differ() && !Agreement::new(1_000, 100, 1_020).differ());
        assert_eq!(Agreement::new(1_000, 100, 550).worst(), 550);
    }

    #[test]
    fn shifts_are_written_as_the_kernel_wants_them() {
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
