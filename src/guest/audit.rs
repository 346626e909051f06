//! Finds what a guest holds that no wipe reaches, for the receipt of a snapshot.

use super::credential_files::{self, CredentialFiles};
use super::credentials::Wanted;
use super::processes;
use super::shell::{ScriptError, Shell};
use crate::files::search::known::KnownValues;
use crate::world::{GuestAudit, GuestPath};

/// The processes that hold a known value, and the credential files that a wipe leaves.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn audit(
    shell: &Shell,
    known: Option<&KnownValues>,
    wanted: &Wanted,
) -> Result<GuestAudit, ScriptError> {
    let CredentialFiles { unproven, .. } = credential_files::find(shell, known, wanted).await?;
    let Some(known) = known else {
        return Ok(GuestAudit { processes: Vec::new(), unproven });
    };
    let mut audit = processes::holding(shell, known).await?;
    audit.unproven.extend(unproven);
    Ok(audit)
}

/// What a wipe takes from the guest besides histories: the files of the configuration, and the credential files that hold a
/// known value.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn wiped_paths(
    shell: &Shell,
    known: Option<&KnownValues>,
    wanted: &Wanted,
) -> Result<Vec<GuestPath>, ScriptError> {
    let CredentialFiles { holding, .. } = credential_files::find(shell, known, wanted).await?;
    Ok(wanted.wipe.iter().cloned().chain(holding).collect())
}
