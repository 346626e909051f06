//! Waits for changes of the files in a directory.

use std::io;
use std::mem::MaybeUninit;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{FileError, Folder, Result};

/// The changes of the files in a directory (inotify(7)): files that are made or renamed there, and writes.
#[derive(Debug)]
pub struct DirectoryChanges(OwnedFd);

impl DirectoryChanges {
    /// Changes from now on.
    ///
    /// # Errors
    /// If the system does not watch the directory.
    pub fn of(folder: &Folder) -> Result<Self> {
        let failed = |error: Errno| FileError::system("watch", folder.path())(error);
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        let kinds = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MODIFY | WatchFlags::ONLYDIR;
        inotify::add_watch(&changes, folder.path(), kinds).map_err(failed)?;
        Ok(Self(changes))
    }

    /// Waits until something has changed since a wait ended last.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn wait(&self) -> io::Result<()> {
        while !self.take()? {
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The same on a runtime of tokio.
    ///
    /// # Errors
    /// What the system refuses.
    pub async fn changed(&self) -> io::Result<()> {
        // Deprecated for types that can change their descriptor while it is watched, and its successor is unsafe; a
        // BorrowedFd cannot change it.
        #[allow(deprecated)]
        let readable = AsyncFd::with_interest(self.0.as_fd(), Interest::READABLE)?;
        while !self.take()? {
            readable.readable().await?.clear_ready();
        }
        Ok(())
    }

    /// Takes all changes that are known. Returns whether there were any.
    fn take(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut any = false;
        loop {
            match events.next() {
                Ok(_) => any = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(any),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_kind_of_change_ends_a_wait_and_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["old", "first", "second"] {
            std::fs::write(path(name), "").unwrap();
        }
        let changes = DirectoryChanges::of(&Folder::open(directory.path()).unwrap()).unwrap();
        assert!(!changes.take().unwrap());
        let kinds: [&dyn Fn(&str); 3] = [
            &|text| std::fs::write(path("old"), text).unwrap(),
            &|name| drop(std::fs::File::create(path(&format!("new-{name}"))).unwrap()),
            &|name| std::fs::rename(path(name), path(&format!("renamed-{name}"))).unwrap(),
        ];
        for change in kinds {
            change("first");
            changes.wait().unwrap();
            assert!(!changes.take().unwrap());
            change_later(&changes, || change("second")).await;
            assert!(!changes.take().unwrap());
        }
    }

    /// The change comes while it is waited for.
    async fn change_later(changes: &DirectoryChanges, change: impl Fn()) {
        let later = async {
            tokio::task::yield_now().await;
            change();
        };
        let (changed, ()) = tokio::join!(changes.changed(), later);
        changed.unwrap();
    }
}
