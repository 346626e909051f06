//! The program of the share daemons: where it is found, and whether it understands what nixbox asks of it.
//!
//! Distributions build virtiofsd from different sources, and QEMU had a program of that name that knows half of the options.
//! So it is not the version that decides, but the list of options that the program prints.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::host::program::{self, ProgramError};
use crate::host::spawn::{self, Invoker, Privileges, Program, SpawnError};
use crate::world::Interrupt;

pub(super) const NAME: &str = "virtiofsd";
pub(super) const VARIABLE: &str = "NIXBOX_VIRTIOFSD";

/// The options that not every virtiofsd has, and that nixbox does not do without.
const OPTIONS: [&str; 6] = [
    "--inode-file-handles",
    "--migration-on-error",
    "--rlimit-nofile",
    "--sandbox",
    "--translate-gid",
    "--translate-uid",
];

/// How long it may take to print them.
const LIMIT: Duration = Duration::from_secs(10);

/// Why there is no program that can serve shares.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum DaemonProgramError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("{path:?} cannot be asked for its options")]
    Ask { path: PathBuf, source: ProgramError },
    #[error(
        "{path:?} is not a virtiofsd that nixbox can use: it does not know {}; install version 1.13 or later, or name it in \
         {VARIABLE}", .missing.join(", ")
    )]
    Unfit { path: PathBuf, missing: Vec<&'static str> },
}

/// Finds the virtiofsd that `user` runs: what `NIXBOX_VIRTIOFSD` names, or the first on PATH and in the directories where
/// distributions put it.
///
/// # Errors
/// [`DaemonProgramError::Unfit`] if it lacks an option that nixbox gives it; [`DaemonProgramError::Ask`];
/// [`DaemonProgramError::Spawn`] if there is none.
pub async fn find(user: &Invoker) -> Result<PathBuf, DaemonProgramError> {
    ask(spawn::find_program_for(user, NAME, VARIABLE)?, user).await
}

/// Returns the path of a program if that has all of the options.
async fn ask(path: PathBuf, user: &Invoker) -> Result<PathBuf, DaemonProgramError> {
    let program = Program::new(&path, Privileges::Invoker(user.clone())).argument("--help");
    let failed = |source| DaemonProgramError::Ask { path: path.clone(), source };
    let mut command = tokio::process::Command::from(program.command());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command
        .spawn()
        .map_err(|source| failed(ProgramError::Run { action: "run", path: path.clone(), source }))?;
    let asked = program::finish(child, &path, &[], LIMIT, &Interrupt::new()).await;
    let help = asked.map_err(failed)?.stdout;
    let missing = lacking(&String::from_utf8_lossy(&help));
    if missing.is_empty() { Ok(path) } else { Err(DaemonProgramError::Unfit { path, missing }) }
}

/// The options that are not in this list.
fn lacking(help: &str) -> Vec<&'static str> {
    let words: Vec<&str> =
        help.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-')).collect();
    OPTIONS.into_iter().filter(|option| !words.contains(option)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::{Need, have};

    #[test]
    fn an_option_is_a_whole_word_of_the_list() {
        let all = "  --sandbox <S>\n --rlimit-nofile=<N>\n -o, --translate-uid <A>\n --translate-gid <A>\n \
                   --migration-on-error <E>\n --inode-file-handles[=<never|prefer>]\n";
        assert_eq!(lacking(all), [] as [&str; 0]);
        assert_eq!(lacking(&all.replace("--translate-uid", "--translate-uids")), ["--translate-uid"]);
        // QEMU's, which was written in C.
        let c = "    -o sandbox=namespace|chroot\n    --rlimit-nofile=<num>\n";
        assert_eq!(lacking(c).len(), 5);
    }

    #[tokio::test]
    async fn the_virtiofsd_of_this_machine_has_them_all() {
        if !have(&[Need::Virtiofsd]) {
            return;
        }
        find(&Invoker::detect().unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_lacks_an_option_or_fails_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("virtiofsd");
        for (script, words) in [
            ("echo '--sandbox --rlimit-nofile'", "does not know --inode-file-handles, --migration-on-error"),
            ("exit 3", "cannot be asked for its options"),
        ] {
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let user = Invoker::detect().unwrap();
            let error = ask(path.clone(), &user).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
