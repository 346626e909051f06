//! Finds what a guest holds that no wipe reaches, for the receipt of a snapshot.

use super::backup::WipeTargets;
use super::credential_files::{self, CredentialFiles};
use super::credentials::Wanted;
use super::processes;
use super::remainders;
use super::shell::{ScriptError, Shell};
use crate::files::search::known::KnownValues;
use crate::world::{GuestAudit, GuestPath, UnprovenPlace, error_chain};

/// The processes that hold a known value, and the files and free blocks that a wipe leaves.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn audit(
    shell: &Shell,
    known: Option<&KnownValues>,
    wanted: &Wanted,
) -> Result<GuestAudit, ScriptError> {
    let CredentialFiles { unproven, .. } = credential_files::find(shell, known, wanted).await?;
    let mut audit = match known {
        Some(known) => processes::holding(shell, known).await?,
        None => GuestAudit::default(),
    };
    audit.unproven.extend(unproven.into_iter().chain(remainders_of(shell, wanted).await));
    Ok(audit)
}

/// What the wipe leaves. What is not known of it is no reason to fail, and is named.
async fn remainders_of(shell: &Shell, wanted: &Wanted) -> Vec<UnprovenPlace> {
    let found = async {
        let targets = WipeTargets::of(shell, &wanted.targets(), &wanted.wipe).await?;
        remainders::find(shell, targets.ours.iter().chain(&targets.theirs)).await
    };
    found.await.unwrap_or_else(|error| {
        vec![UnprovenPlace { place: remainders::ALL.to_owned(), reason: error_chain(&error) }]
    })
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
