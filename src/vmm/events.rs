//! What a VMM has reported of itself: the file of `--event-monitor`, which is kept as a log beside the VMM's own.
//!
//! The VMM writes one JSON object for each event (v51 to v53, read in their sources). Those that matter here:
//!
//! | source | event | when |
//! |---|---|---|
//! | `vm` | `rebooting`, `rebooted` | before and after the VMM makes the VM anew for a guest that reboots |
//! | `vm` | `shutdown`, `deleted` | the guest has powered off, or the VMM was told to end |
//! | `vmm` | `shutdown` | the same, after these |
//!
//! A VMM that is killed reports nothing. A VMM that gets SIGTERM reports what it reports when its guest powers off. The VMM of
//! a hostile guest may write anything, so that nothing but what a person is told depends on this file.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use crate::files::FileError;

/// How much of the end of the file is read. An event is some 100 bytes.
const TAIL: u64 = 64 << 10;

/// One event.
#[derive(Debug, Deserialize)]
struct ReportedEvent {
    source: String,
    event: String,
}

/// What the last events of a VMM say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastEvents {
    /// The VMM has ended in order, or is about to.
    pub ended_in_order: bool,
    /// The guest was rebooted in this VMM.
    pub rebooted: bool,
}

impl LastEvents {
    /// Reads the file of a VMM's events. A VMM that an earlier nixbox has started has none, and has reported nothing.
    ///
    /// # Errors
    /// [`FileError`] if the file is there and cannot be read.
    pub(super) fn read(path: &Path) -> Result<Self, FileError> {
        let read = || {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => Ok(Self::in_bytes(&bytes)),
            Err(error) if std::io::Error::kind(&error) == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(FileError::system("read", path)(error)),
        }
    }

    /// What these bytes say, which may begin and end in the middle of an event.
    fn in_bytes(bytes: &[u8]) -> Self {
        let mut last = Self::default();
        // An event begins with a bracket in the first column, and what is inside of it is indented.
        let begins = |at: &usize| bytes[*at] == b'{' && (*at == 0 || bytes[*at - 1] == b'\n');
        for start in (0..bytes.len()).filter(begins) {
            let mut events =
                serde_json::Deserializer::from_slice(&bytes[start..]).into_iter::<ReportedEvent>();
            let Some(Ok(ReportedEvent { source, event })) = events.next() else { continue };
            last.ended_in_order = matches!(
                (source.as_str(), event.as_str()),
                ("vm", "shutdown" | "deleted") | ("vmm", "shutdown")
            );
            last.rebooted |= source == "vm" && event == "rebooted";
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events as the VMM writes them.
    fn written(events: &[(&str, &str)]) -> String {
        let event = |(source, event): &(&str, &str)| {
            let value = serde_json::json!({
                "timestamp": {"secs": 1, "nanos": 5}, "source": source, "event": event, "properties": null
            });
            format!("{}\n\n", serde_json::to_string_pretty(&value).unwrap())
        };
        events.iter().map(event).collect()
    }

    #[test]
    fn a_vmm_has_ended_in_order_if_its_last_event_says_so() {
        let read = |events: &[(&str, &str)]| LastEvents::in_bytes(written(events).as_bytes());
        let last = |ended_in_order, rebooted| LastEvents { ended_in_order, rebooted };
        let booted = [("vm", "booting"), ("vm", "booted")];
        assert_eq!(read(&[]), last(false, false));
        assert_eq!(read(&booted), last(false, false));
        let off = [("vm", "shutdown"), ("vm", "deleted"), ("vmm", "shutdown")];
        for reported in 1..=3 {
            // The process may end before it has written all of them.
            assert_eq!(read(&[&booted[..], &off[..reported]].concat()), last(true, false));
        }
        let reboot = [("vm", "rebooting"), ("vm", "rebooted")];
        assert_eq!(read(&[&booted[..], &reboot].concat()), last(false, true));
        assert_eq!(read(&[&booted[..], &reboot, &off].concat()), last(true, true));
        // The VM could not be made anew, or the VMM was killed.
        assert_eq!(read(&[&booted[..], &reboot[..1]].concat()), last(false, false));
    }

    #[test]
    fn a_file_that_begins_or_ends_in_the_middle_is_read_as_far_as_it_goes() {
        let text = written(&[("vm", "rebooted"), ("vm", "shutdown")]);
        let first = written(&[("vm", "rebooted")]).len();
        assert_eq!(
            LastEvents::in_bytes(&text.as_bytes()[5..]),
            LastEvents { ended_in_order: true, rebooted: false }
        );
        assert_eq!(
            LastEvents::in_bytes(&text.as_bytes()[..first + 20]),
            LastEvents { ended_in_order: false, rebooted: true }
        );
        for nonsense in ["{", "{}\n", "\0\0\0", "{\"source\": 3}\n", "[1]"] {
            assert_eq!(LastEvents::in_bytes(nonsense.as_bytes()), LastEvents::default(), "{nonsense}");
        }
        assert_eq!(LastEvents::read(Path::new("/nowhere/events")).unwrap(), LastEvents::default());
    }
}
