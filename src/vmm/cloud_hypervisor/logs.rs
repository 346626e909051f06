//! What VMMs and the consoles of their guests have written, and where it is. May use [`super`] and `events`.

use std::path::PathBuf;

use super::{CloudHypervisor, EVENTS};
use crate::host::process;
use crate::vmm::error::VmmError;
use crate::vmm::events::LastEvents;
use crate::world::Generation;

impl CloudHypervisor {
    /// The file that the output of a generation's serial console is written to.
    #[must_use]
    pub fn serial_log(&self, generation: Generation) -> PathBuf {
        self.settings.runtime.join(format!("serial-{generation}.log"))
    }

    /// The file in which the VMM of a generation reports its events.
    pub(super) fn events_log(&self, generation: Generation) -> PathBuf {
        self.settings.runtime.join(format!("{EVENTS}-{generation}.log"))
    }

    /// What the VMM of a generation has reported.
    ///
    /// # Errors
    /// If its report cannot be read.
    pub fn last_events(&self, generation: Generation) -> std::result::Result<LastEvents, VmmError> {
        Ok(LastEvents::read(&self.events_log(generation))?)
    }

    /// The last line that the guest wrote to its serial console, if there is one.
    #[must_use]
    pub fn console_line(&self, generation: Generation) -> Option<String> {
        process::last_line(&self.serial_log(generation))
    }

    /// How many bytes the guest has written to its serial console. Returns `None` if the log of the console does not exist.
    #[must_use]
    pub fn console_size(&self, generation: Generation) -> Option<u64> {
        std::fs::metadata(self.serial_log(generation)).ok().map(|status| status.len())
    }

    /// The last lines of the newest VMM's log and of the newest serial log, to be shown to a person. Logs are kept
    /// after a VMM has ended.
    #[must_use]
    pub fn last_words(&self) -> Vec<String> {
        let of = |whose: &str, name: &str| {
            let (path, text) = self.daemons.newest_log(name)?;
            (!text.is_empty()).then(|| format!("{whose} said last ({}): {text}", path.display()))
        };
        [("its VMM", self.role.to_string().as_str()), ("its console", "serial")]
            .into_iter()
            .filter_map(|(whose, name)| of(whose, name))
            .collect()
    }
}
