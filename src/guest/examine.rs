//! Finds out, before anything in the guest is changed, whether nixbox can do there what a snapshot needs.
//!
//! Root and settling are tried. The login files, the list of injected files and the place of each credential are looked
//! at: whether a file can be written shows only when it is written, but the common reasons against it show before.

use std::time::Duration;

use super::credentials::Credential;
use super::inject::{self, FUNCTIONS, InjectError, LOGIN_FILES, rights};
use super::settle::{self, SettleError};
use super::shell::{Rights, ScriptError, Shell, quoted};
use super::survey::LEDGER;
use crate::world::GuestPath;

/// The time limit of one script that looks at a handful of files.
const LIMIT: Duration = Duration::from_secs(30);

/// Why a guest is not fit for a snapshot. Nothing in the guest was changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum UnfitGuest {
    #[error(
        "the guest's user is not root and has no `sudo` without a password, which nixbox needs to wipe credentials: \
         `NOPASSWD: ALL` in the guest's sudoers gives it"
    )]
    NoRoot(#[source] ScriptError),
    #[error("the guest cannot be given fresh entropy and the time, which it needs when it goes on")]
    Settle(#[source] SettleError),
    #[error("credentials cannot be written in the guest: {}", .0.join("; "))]
    Files(Vec<String>),
    #[error(transparent)]
    Inject(#[from] InjectError),
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// The shell function `writable FILE` prints why FILE cannot be written, if it cannot: `nixbox:` begins each reason.
/// `place FILE` does so for a file that is made together with the directories above it.
const CHECKS: &str = r#"
says() { printf 'nixbox:%s\n' "$1"; }
above() { p=${1%/*}; while [ -n "$p" ] && [ ! -d "$p" ]; do p=${p%/*}; done; printf '%s' "${p:-/}"; }
place() {
  if [ -d "$1" ] && [ ! -L "$1" ]; then says "$1 is a directory"; return; fi
  d=$(above "$1")
  ! shared "$(readlink -f "$d")/x" || { says "$1 lies on a share: it would be written to the host"; return; }
  [ -w "$d" ] && [ -x "$d" ] || says "$1: the directory $d cannot be written"
}
writable() {
  if [ -e "$1" ]; then [ -f "$1" ] && [ -w "$1" ] || says "$1 cannot be written"
  else place "$1"
  fi
}
"#;

/// Examines the guest.
///
/// # Errors
/// [`UnfitGuest`] says what cannot be done.
pub async fn examine(
    shell: &Shell,
    credentials: &[Credential],
    overwrite: &[GuestPath],
    require_entropy: bool,
) -> Result<(), UnfitGuest> {
    let what = "become root in the guest";
    match shell.script(what, Rights::Root, ":", &[], LIMIT).await {
        Err(error @ ScriptError::NoRights { .. }) => return Err(UnfitGuest::NoRoot(error)),
        tried => tried.map(drop)?,
    }
    if require_entropy {
        settle::attempt(shell).await.map_err(UnfitGuest::Settle)?;
    }
    let mut reasons = Vec::new();
    for with in [Rights::User, Rights::Root] {
        reasons.extend(unwritable(shell, with, credentials).await?);
    }
    if !reasons.is_empty() {
        return Err(UnfitGuest::Files(reasons));
    }
    let survey = inject::survey(shell, credentials, &[]).await?;
    let foreign = inject::foreign(&survey, &shell.facts.home, credentials, overwrite);
    if foreign.is_empty() { Ok(()) } else { Err(InjectError::Foreign(foreign).into()) }
}

/// Why files that are written with these rights cannot be written.
async fn unwritable(
    shell: &Shell,
    with: Rights,
    credentials: &[Credential],
) -> Result<Vec<String>, ScriptError> {
    let home = &shell.facts.home;
    let mut script = format!("{FUNCTIONS}{CHECKS}");
    let mut files = 0;
    for credential in credentials {
        let path = credential.target.expand(home);
        if rights(home, &path, credential.owner.as_ref()) == with {
            script += &format!("place {}\n", quoted(&path));
            files += 1;
        }
    }
    if with == Rights::User && !credentials.is_empty() {
        script += &format!("writable {}\n", quoted(&home.join(LEDGER)));
        files += 1;
    }
    if with == Rights::User && credentials.iter().any(|one| one.target == GuestPath::ENVIRONMENT) {
        script += &format!("{LOGIN_FILES}each_login_file writable\n");
    }
    if files == 0 {
        return Ok(Vec::new());
    }
    let told = shell.script("look at the places of the credentials", with, &script, &[], LIMIT).await?;
    let reasons = told.lines().filter_map(|line| line.strip_prefix("nixbox:"));
    Ok(reasons.map(|line| line.chars().filter(|letter| !letter.is_control()).take(300).collect()).collect())
}
