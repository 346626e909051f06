//! How the credentials of the configuration are in the guest, for a person to look at. Changes nothing.

use serde::Serialize;

use super::SshGuest;
use crate::guest::inject::{self, CredentialState, Expected, rights};
use crate::guest::shell::Shell;
use crate::guest::survey::survey;
use crate::world::{Failure, GuestPath, Machine, Result, WaitObserver, error_chain};

/// How the credentials of the configuration are in the guest.
#[derive(Debug)]
pub struct CredentialStates {
    /// The credentials of the configuration.
    pub configured: Vec<ConfiguredCredential>,
    /// Files that nixbox has written and that are not in the configuration any more. The next injection removes them.
    pub others: Vec<GuestPath>,
    /// Why the credentials cannot be read from their sources; `None` if they were.
    pub problem: Option<String>,
}

/// A file of the configuration that is to be in the guest.
#[derive(Debug, Serialize)]
pub struct ConfiguredCredential {
    /// Its path in the guest.
    pub target: String,
    /// The variables in it.
    pub variables: Vec<String>,
    /// How it is in the guest.
    pub state: CredentialState,
}

impl SshGuest {
    /// Reads the credentials from their sources, and compares them with what is in the guest. `waits` is told which sources take
    /// long.
    ///
    /// # Errors
    /// If the guest cannot be asked.
    pub async fn credential_states(
        &self,
        machine: &Machine,
        waits: &WaitObserver<'_>,
    ) -> Result<CredentialStates> {
        let wanted = &self.settings.wanted;
        let targets = wanted.targets();
        let (expected, problem) = match self.credentials(waits).await {
            Ok(credentials) => (credentials.iter().map(Expected::from).collect(), None),
            Err(failure) => (Vec::new(), Some(error_chain(&failure))),
        };
        let expected = |target: &GuestPath| expected.iter().find(|one: &&Expected| one.target == *target);
        let examined = self.with(machine, async |shell: &Shell| {
            let home = &shell.facts.home;
            let place = |target: &GuestPath| {
                let path = target.expand(home);
                let owner = expected(target).and_then(|expected| expected.owner.as_ref());
                let rights = rights(home, &path, owner);
                (path, rights)
            };
            let places: Vec<_> = targets.iter().map(place).collect();
            let survey = survey(shell, &places, &[]).await.map_err(Failure::world)?;
            let state =
                |target| inject::state(&survey, home, shell.facts.ids.uid, (target, expected(target)));
            let states: Vec<_> = targets.iter().map(state).collect();
            let is_target = |noted: &GuestPath| places.iter().any(|(path, _)| noted.expand(home) == *path);
            let others: Vec<_> = survey.noted.iter().filter(|noted| !is_target(noted)).cloned().collect();
            Ok((states, others))
        });
        let (states, others) = examined.await?;
        let configured = targets.iter().zip(states).map(|(target, state)| ConfiguredCredential {
            target: target.to_string(),
            variables: wanted.variables_in(target).iter().map(ToString::to_string).collect(),
            state,
        });
        Ok(CredentialStates { configured: configured.collect(), others, problem })
    }
}
