//! The files in which usual programs keep credentials.
//!
//! A program of the guest may have copied a value that nixbox injected into such a file. Then a wipe takes the file as if
//! the configuration listed it. A file that holds no known value stays in the guest and in the snapshot, and the receipt
//! names it: nixbox cannot tell whether it holds a credential of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use super::credentials::Wanted;
use super::inject::FUNCTIONS;
use super::script_items::ScriptItems;
use super::shell::{Rights, ScriptError, Shell, quoted};
use super::survey::ledger;
use crate::files::search::known::KnownValues;
use crate::files::search::value::Treatment;
use crate::world::{GuestPath, UnprovenPlace, is_within};

/// The files, below the home of the guest's user. What `docker login` keeps is always wiped.
const FILES: [&str; 16] = [
    ".aws/credentials",
    ".cargo/credentials.toml",
    ".claude.json",
    ".claude/.credentials.json",
    ".config/gcloud/application_default_credentials.json",
    ".config/gh/hosts.yml",
    ".config/git/credentials",
    ".config/glab-cli/config.yml",
    ".git-credentials",
    ".gradle/gradle.properties",
    ".kube/config",
    ".m2/settings.xml",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".sbt/.credentials",
];
/// How much of each is read, in bytes.
const MOST_OF_ONE: usize = 256 << 10;
/// The most bytes that the guest sends: all of them, with their headers.
const MOST: usize = FILES.len() * (MOST_OF_ONE + 1024);
/// The time limit.
const LIMIT: Duration = Duration::from_secs(30);

/// The credential files of a guest that are not wiped in any case.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CredentialFiles {
    /// Those that hold a known value.
    pub(super) holding: Vec<GuestPath>,
    /// The others, for the receipt.
    pub(super) unproven: Vec<UnprovenPlace>,
}

/// Finds the credential files, except those that nixbox injects or has injected, and those that the configuration wipes.
/// Files on a share are the host's.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn find(
    shell: &Shell,
    known: Option<&KnownValues>,
    wanted: &Wanted,
) -> Result<CredentialFiles, ScriptError> {
    let home = &shell.facts.home;
    let targets = wanted.targets();
    let ours: BTreeSet<String> =
        ledger(shell).await?.iter().chain(&targets).map(|path| path.expand(home)).collect();
    let listed: Vec<String> = wanted.wipe.iter().map(|path| path.expand(home)).collect();
    let is_left = |name: &&&str| {
        let path = home.join(name);
        !ours.contains(&path) && !listed.iter().any(|listed| is_within(&path, listed))
    };
    let call = |name: &&str| format!("look {} {}\n", quoted(&home.join(name)), quoted(name));
    let calls: String = FILES.iter().filter(is_left).map(call).collect();
    let script = format!(
        r#"{FUNCTIONS}
look() {{
  [ -f "$1" ] && [ -s "$1" ] && ! shared "$(real_parent "$1")" || return 0
  item file "$2"
  head -c {MOST_OF_ONE} "$1"
}}
{calls}"#
    );
    let what = "look at the guest's credential files";
    let told = ScriptItems::of(shell, what, Rights::User, &script, MOST, LIMIT).await?;
    let mut files = CredentialFiles::default();
    for item in told.items() {
        let name = FILES.iter().find(|name| item.header == format!("file {name}").as_bytes());
        let Some(path) = name.and_then(|name| format!("~/{name}").parse::<GuestPath>().ok()) else {
            continue;
        };
        if known.is_some_and(|known| holds(known, item.body)) {
            files.holding.push(path);
        } else {
            files.unproven.push(UnprovenPlace {
                place: format!("{path} of the guest"),
                reason:
                    "nixbox knows no value in it, and left it in the snapshot; credentials.wipe can list it"
                        .to_owned(),
            });
        }
    }
    Ok(files)
}

/// Whether a text holds a value that must not be in a snapshot.
fn holds(known: &KnownValues, text: &[u8]) -> bool {
    let mut holds = false;
    known.searcher().search(text, usize::MAX, |hit| {
        let value = known.values().get(hit.value as usize);
        holds |= value.is_some_and(|value| value.treatment != Treatment::Ordinary);
    });
    holds
}
