//! What the share daemons of a VM are told.

use std::path::Path;

use crate::config::VmSpec;
use crate::host::shares::{Share, ShareSettings};
use crate::host::spawn::Invoker;
use crate::workspace::Workspace;
use crate::world::ShareTag;

/// The shares of a VM of this description.
pub(super) fn of(workspace: &Workspace, spec: &VmSpec, runtime: &Path, invoker: Invoker) -> ShareSettings {
    ShareSettings {
        runtime: runtime.to_owned(),
        workspace: workspace.id(),
        root: workspace.root().to_owned(),
        invoker,
        guest: spec.guest.user_ids(),
        shares: spec
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| Share {
                tag: ShareTag::numbered(index),
                source: mount.source.as_path().to_owned(),
                readonly: mount.readonly,
                protect: mount.protect.clone(),
            })
            .collect(),
    }
}
