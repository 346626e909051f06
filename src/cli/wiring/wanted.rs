//! The credentials that the guest of a world is given.

use std::sync::Arc;

use super::{Description, Purpose, Result, WiringError, own_key, shared_paths};
use crate::config;
use crate::files::shared_paths::SharedPaths;
use crate::guest::credentials::{FileRule, Wanted};
use crate::guest::key;
use crate::workspace::Workspace;
use crate::world::SecretSource;

/// The credentials of the configuration; none if they are withheld, or if nothing that is done needs one.
pub(super) fn wanted(
    workspace: &Workspace,
    description: &Description,
    purpose: Purpose<'_>,
) -> Result<Wanted> {
    let Purpose::Any(config) = purpose else {
        return Ok(Wanted::default());
    };
    let removed = Wanted {
        wipe: config.credentials.wipe.clone(),
        overwrite: config.credentials.overwrite.clone(),
        shared: shared_paths(&description.spec),
        ..Wanted::default()
    };
    if description.withholds_credentials {
        return Ok(removed);
    }
    let file = |file: &config::CredentialFile| FileRule {
        source: SecretSource::File(file.source.clone()),
        target: file.target.clone(),
        owner: None,
    };
    Ok(Wanted {
        environment: config.env.iter().map(|(name, source)| (name.clone(), source.clone())).collect(),
        files: config.credentials.files.iter().map(file).collect(),
        key: if config.credentials.outbound_key {
            Some(Arc::new(
                key::load(&own_key(workspace), &SharedPaths::default()).map_err(WiringError::OwnKey)?,
            ))
        } else {
            None
        },
        ..removed
    })
}
