//! What is made to go wrong on the host, and the errors that a program then meets.

use super::files::Survival;

/// What is killed or fails at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// The program is killed.
    Death,
    /// The power fails: processes, devices and RAM are gone, and of what was not synced some survives.
    PowerCut(Survival),
    /// The VMM is killed, and the program runs on.
    VmmKilled,
    /// The VMM and its guest hang: the process lives and never answers again. The program runs on.
    VmmHangs,
    /// The share daemons are killed, and the program runs on.
    SharesKilled,
}

/// How a call of a seam goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallFault {
    /// An error, and nothing was done.
    ErrorBefore,
    /// An error, and all was done.
    ErrorAfter,
    /// No answer, and nothing was done.
    SilentBefore,
    /// No answer, and all was done.
    SilentAfter,
}

/// What happens at a point or call, counted from 0 since the fault was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// Something is killed or fails at this point.
    CrashAt(u64, Crash),
    /// This call of a seam goes wrong, and no other.
    CallGoesWrong(u64, CallFault),
    /// This call of a seam goes wrong, and so does every later call of the same kind.
    CallsGoWrong(u64, CallFault),
    /// The program is interrupted at this point.
    InterruptAt(u64),
    /// This write or sync of the journal's storage fails, and so does every later one.
    StorageFails(u64, std::io::ErrorKind),
}

/// The loads of saved states that the VMM refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusedLoads {
    /// None.
    None,
    /// The next ones, and none after them.
    Next(u32),
    /// Those with shares.
    WithShares,
    /// All.
    All,
}

/// What stops working beside nixbox: on the host, or in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loss {
    /// The sources of the credentials can no longer be read.
    Sources,
    /// The guests refuse fresh entropy.
    Entropy,
    /// The guests let nobody set their clock.
    Clock,
    /// The guests let nobody become root.
    Root,
    /// The files for the credentials can no longer be written in the guests.
    Targets,
    /// The guests run, and answer no connection.
    Answers,
}

/// What the program has done since the fault was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Points passed.
    pub points: u64,
    /// Seam calls made.
    pub calls: u64,
    /// Writes and syncs of the journal's storage.
    pub writes: u64,
}

/// Why a call of a seam fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum FakeError {
    /// Something that the call needs is not as it must be.
    #[error("{0}")]
    Refused(&'static str),
    /// The program that calls was killed at a point before.
    #[error("the program has died")]
    ProgramDied,
    /// The guest did not answer for as long as the configuration allows.
    #[error("the guest does not answer")]
    NoAnswer,
    /// The VMM that is asked hangs.
    #[error("the VMM does not answer")]
    VmmHangs,
    /// A fault was set for this call.
    #[error("a fault was set here")]
    FaultSet,
}
