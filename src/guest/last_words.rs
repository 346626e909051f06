//! What a program of the guest has printed last, for a message.

/// The last three lines of what a program of the guest has printed, joined into one line that is safe to print.
pub(crate) fn last_words(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let end = lines[lines.len().saturating_sub(3)..].join("; ");
    end.chars().filter(|letter| !letter.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stderr_is_made_safe_to_print() {
        assert_eq!(last_words(b"a\nb\n\n c\x1b[2J\nd\n"), "b; c[2J; d");
        assert!(last_words(&[b'x'; 9000]).len() <= 400);
    }
}
