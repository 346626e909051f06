//! What is made to go wrong on the host, and the errors that a program then meets.

use super::files::Survival;

/// How the program ends at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// It is killed. The world stays as it is.
    Death,
    /// The power fails: processes, devices and memory are gone, and what was not synced survives in part.
    PowerCut(Survival),
    /// The VMM is killed, and the program goes on.
    VmmKilled,
    /// The VMM hangs, and its guest with it: it lives and never answers again. The program goes on.
    VmmHangs,
    /// The share daemons are killed, and the program goes on.
    SharesKilled,
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
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
    /// At this point the program ends, or the VMM does.
    CrashAt(u64, Crash),
    /// At this call of a seam something goes wrong, once.
    CallGoesWrong(u64, Wrong),
    /// From this call of a seam on, every call of the same kind goes wrong, for good.
    CallsGoWrong(u64, Wrong),
    /// At this point somebody asks to stop.
    InterruptAt(u64),
    /// This write or sync of the journal's storage fails, and so do all that come after it.
    StorageFails(u64, std::io::ErrorKind),
}

/// Counts what the program did since the fault was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Points passed.
    pub points: u64,
    /// Seam calls made.
    pub calls: u64,
    /// Writes and syncs of the journal's storage.
    pub writes: u64,
}

/// Why a call to a seam fails here.
#[derive(Debug, thiserror::Error)]
pub(super) enum FakeError {
    /// Something that the call needs is not as it must be.
    #[error("{0}")]
    Refused(&'static str),
    /// The program that calls was killed at a point before.
    #[error("the program has died")]
    ProgramDied,
    /// The VMM that is asked hangs.
    #[error("the VMM does not answer")]
    VmmHangs,
    /// A fault was set for this call.
    #[error("a fault was set here")]
    FaultSet,
}
