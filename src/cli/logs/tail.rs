//! A log that is read from its end on, line by line.

use std::io::{Read as _, Seek as _, SeekFrom};

use crate::cli::error::{CliError, Problem};
use crate::files::{FileError, Folder};

/// How much of the end of a log is searched for lines, in bytes.
const MOST: u64 = 4 << 20;
/// The longest line. A guest may write without ever ending one.
const LONGEST_LINE: usize = 64 << 10;

/// What was shown of a log.
pub(super) struct LogTail {
    /// How many lines of the log's end are still to be shown.
    lines: usize,
    /// The file, and how far it was read, in bytes.
    read: Option<(String, u64)>,
    /// The beginning of a line that has not ended.
    unfinished: Vec<u8>,
}

impl LogTail {
    /// Shows that many lines of the end of the first file, and of every file what comes later.
    pub(super) fn new(lines: usize) -> Self {
        Self { lines, read: None, unfinished: Vec::new() }
    }

    /// Shows what the file has more than last time. Another file than last time is shown from its beginning.
    ///
    /// # Errors
    /// If the file cannot be read, and the errors of `show`.
    pub(super) fn advance(
        &mut self,
        folder: &Folder,
        name: &str,
        mut show: impl FnMut(&str) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let Some(mut file) = folder.file(name).map_err(CliError::from)? else { return Ok(()) };
        let failed =
            |source| CliError::from(FileError::System { action: "read", path: folder.path_of(name), source });
        let length = file.metadata().map_err(failed)?.len();
        let is_first = self.read.is_none();
        let from = match &self.read {
            // A file that has become shorter was begun anew.
            Some((same, read)) if same == name && *read <= length => *read,
            Some(_) => 0,
            None => length.saturating_sub(MOST),
        };
        file.seek(SeekFrom::Start(from)).map_err(failed)?;
        let mut bytes = Vec::new();
        // What is appended meanwhile is left for the next time.
        file.take(length - from).read_to_end(&mut bytes).map_err(failed)?;
        if !matches!(&self.read, Some((same, _)) if same == name) {
            self.unfinished.clear();
        }
        self.read = Some((name.to_owned(), from + bytes.len() as u64));
        let lines = self.take_lines(&bytes);
        let first = if is_first { lines.len().saturating_sub(self.lines) } else { 0 };
        lines[first..].iter().try_for_each(|line| show(line))
    }

    /// The lines that are finished with these bytes, without their ends.
    fn take_lines(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' || self.unfinished.len() == LONGEST_LINE {
                // A serial console ends lines with two characters.
                let line = self.unfinished.strip_suffix(b"\r").unwrap_or(&self.unfinished);
                lines.push(String::from_utf8_lossy(line).into_owned());
                self.unfinished.clear();
            }
            if *byte != b'\n' {
                self.unfinished.push(*byte);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_end_of_a_log_is_shown_and_then_what_is_added() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut tail = LogTail::new(2);
        let mut shown = |name: &str| {
            let mut lines = Vec::new();
            tail.advance(&folder, name, |line| {
                lines.push(line.to_owned());
                Ok(())
            })
            .unwrap();
            lines
        };
        assert!(shown("1").is_empty());
        fs::write(path("1"), "a\r\nb\nc\nunfin").unwrap();
        assert_eq!(shown("1"), ["b", "c"]);
        let append =
            |text: &[u8]| OpenOptions::new().append(true).open(path("1")).unwrap().write_all(text).unwrap();
        append(b"ished\nd\n\xff\xc3");
        assert_eq!(shown("1"), ["unfinished", "d"]);
        append(b"\xa4\n");
        assert_eq!(shown("1"), ["\u{fffd}\u{e4}"]);
        assert!(shown("1").is_empty());
        // The next VM has another file, and a file may be begun anew.
        fs::write(path("2"), "x\ny\nz\n").unwrap();
        assert_eq!(shown("2"), ["x", "y", "z"]);
        fs::write(path("2"), "n\n").unwrap();
        assert_eq!(shown("2"), ["n"]);
        let long = "l".repeat(LONGEST_LINE + 1);
        fs::write(path("3"), format!("{long}\n")).unwrap();
        assert_eq!(shown("3"), [&long[1..], "l"]);
    }
}
