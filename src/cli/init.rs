//! `nixbox init`.

use super::report::{self, Exit, Outcome, Problem};
use super::{Place, assembly, done};
use crate::guest::key::{self, KeyError};
use crate::workspace;

/// Make this directory a workspace: a commented configuration and a key for its VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: cd my-project && nixbox init && $EDITOR .nixbox/config.toml")]
pub(super) struct Arguments {}

#[derive(Debug, thiserror::Error)]
#[error("the workspace is there, but has no key of its own")]
struct NoKey(#[source] KeyError);

pub(super) fn run(place: &Place, _: &Arguments) -> Outcome {
    let (workspace, mut made) = workspace::init(&place.directory)?;
    let path = assembly::own_key(&workspace);
    // Whatever bears the name, a link too: it is not overwritten.
    if std::fs::symlink_metadata(&path).is_err() {
        key::generate()
            .and_then(|fresh| key::write(&fresh, &path))
            .map_err(|error| Problem::new(Exit::Failed, NoKey(error)))?;
        made.push(path);
    }
    if made.is_empty() {
        let root = workspace.root().display();
        report::print(&format!("{root} is a workspace already; nothing was changed"))?;
    }
    for path in made {
        report::print(&format!("made {}", path.display()))?;
    }
    done()
}
