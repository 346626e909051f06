//! The commands by which nixbox starts its own program: launchers, and processes that stay with a VM.
//!
//! A VM is built by half a dozen such processes, and most of them end after a few system calls. They are recognized before
//! the command line of a person is described and parsed, which would take longer than what they do.

use std::ffi::OsString;

use super::error::Outcome;
use super::{confined_daemon, network_namespace, scope_daemon, share_daemon};
use crate::host::network::inside;
use crate::host::systemd::scope;
use crate::host::{confinement, share_view};

/// What a process does with the words after the command.
type OwnProcess = fn(&[OsString]) -> Outcome;

const ALL: [(&str, OwnProcess); 4] = [
    (inside::COMMAND, network_namespace::run),
    (share_view::COMMAND, share_daemon::run),
    (confinement::COMMAND, confined_daemon::run),
    (scope::COMMAND, scope_daemon::run),
];

/// The process that these words ask for, which begin with the name of the program, and the words that are for it.
pub(super) fn find(words: &[OsString]) -> Option<(OwnProcess, &[OsString])> {
    let [_, command, rest @ ..] = words else { return None };
    ALL.iter().find(|(name, _)| command == name).map(|(_, own)| (*own, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_word_names_an_own_process() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (name, _) in ALL {
            let asked = words(&format!("nixbox {name} a --help"));
            let (_, rest) = find(&asked).unwrap();
            assert_eq!(rest, ["a", "--help"], "{name}");
            assert!(find(&words(&format!("nixbox -C {name}"))).is_none(), "{name}");
        }
        assert!(find(&words("nixbox up")).is_none() && find(&words("nixbox")).is_none());
    }
}
