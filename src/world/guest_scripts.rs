//! The scripts of a person that run in the guest: when they run, and what became of them.

use serde::{Deserialize, Serialize};

/// The points at which scripts of a person run in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GuestScriptPoint {
    /// When a guest that was booted has its credentials and shares.
    AfterUp,
    /// When a guest that was restored has its credentials and shares.
    AfterRestore,
    /// Before the wipe of a snapshot.
    BeforeSnapshot,
}

impl GuestScriptPoint {
    /// The key of the configuration that lists the scripts of the point.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::AfterUp => "guest.scripts.after-up",
            Self::AfterRestore => "guest.scripts.after-restore",
            Self::BeforeSnapshot => "guest.scripts.before-snapshot",
        }
    }
}

/// What became of the scripts of a point. What a script printed is shown to the person and never written to the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestScriptsOutcome {
    /// All of them succeeded.
    Succeeded,
    /// At least one of them failed, and all of them ended.
    Failed,
    /// One of them did not end in time, or the connection to the guest broke while it ran. Those after it did not run.
    Unfinished,
}
