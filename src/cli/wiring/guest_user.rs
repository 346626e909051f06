//! What follows from the numbers that a guest says its user has: the files of shares have to belong to that user there. A
//! guest may say anything. What it says decides only as whose the guest itself sees the files; on the host a guest acts as the
//! invoking user, whatever the numbers are.

use std::sync::Arc;

use crate::config::{DecidedDefaults, DecidedUser, VmSpec};
use crate::files::Folder;
use crate::guest::ssh_guest::UserObserver;
use crate::workspace::Workspace;
use crate::world::{UserIds, error_chain};

/// Tells a person, by `tell`, that the shares of a VM belong to other numbers in the guest than its user has. If the
/// configuration does not have the numbers (`defaulted`), they are written down for the next VM, and told once.
pub(super) fn observer(
    workspace: &Workspace,
    spec: &VmSpec,
    defaulted: bool,
    tell: Arc<dyn Fn(&str) + Send + Sync>,
) -> Arc<UserObserver> {
    let (state, shown) = (workspace.state().path().to_owned(), spec.guest.user_ids());
    let (name, shares) = (spec.guest.user.clone(), !spec.mounts.is_empty());
    Arc::new(move |ids| {
        if ids == shown || !shares || !ids.can_own() {
            return;
        }
        if !defaulted {
            tell(&notice(ids, shown, "guest.uid and guest.gid say so"));
            return;
        }
        let user = DecidedUser { name: name.clone(), ids };
        let learned = Folder::open(&state)
            .map_err(|error| error_chain(&error))
            .and_then(|state| DecidedDefaults::learn(&state, user).map_err(|error| error_chain(&error)));
        match learned {
            Ok(true) => tell(&notice(ids, shown, "`nixbox down` and `nixbox up` give them to that user")),
            Ok(false) => {}
            Err(why) => tell(&notice(ids, shown, &format!("this cannot be written down: {why}"))),
        }
    })
}

fn notice(ids: UserIds, shown: UserIds, more: &str) -> String {
    format!(
        "the guest's user has the numbers {ids}, and the files of its shares belong to {shown} there, so that it may be \
         unable to write them; {more}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_names_both_users() {
        let (ids, shown) = (UserIds { uid: 1001, gid: 100 }, UserIds { uid: 1000, gid: 1000 });
        let told = notice(ids, shown, "more");
        assert!(
            told.contains("1001:100") && told.contains("1000:1000") && told.ends_with("; more"),
            "{told}"
        );
    }
}
