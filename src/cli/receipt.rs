//! The receipt of a snapshot, in the words of `nixbox snapshot`.

use crate::world::{FoundValue, HoldingProcess, Receipt, TokenWarning, UnprovenPlace, UnprovenValue};

/// One word for what a receipt says.
pub(super) fn verdict(receipt: Option<&Receipt>) -> &'static str {
    match receipt {
        None => "unsearched",
        Some(receipt) if !receipt.unproven.is_empty() => "unproven",
        Some(receipt) if !receipt.found.is_empty() => "redacted",
        Some(_) => "clean",
    }
}

/// A value that was found, and where.
pub(super) fn found(FoundValue { value, place, form, count }: &FoundValue) -> String {
    let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
    format!("{value} in {place} ({form}, {times})")
}

/// How much was searched, and for what.
pub(super) fn searched(receipt: &Receipt) -> String {
    let values = match receipt.values.as_slice() {
        [] => "no value, because none was ever injected that can be searched for".to_owned(),
        values => values.join(", "),
    };
    format!("{} of data were searched for {values}", indicatif::HumanBytes(receipt.bytes))
}

/// A process that held a value, and the names of the values.
fn process(HoldingProcess { pid, program, values }: &HoldingProcess) -> String {
    format!("{program} (process {pid}: {})", values.join(", "))
}

/// Processes that hold or held a value, by name: some of them, and the number of the others. `None` if there are none.
pub(super) fn holding(processes: &[HoldingProcess]) -> Option<String> {
    const SHOWN: usize = 8;
    let shown: Vec<String> = processes.iter().take(SHOWN).map(process).collect();
    let more = match processes.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!processes.is_empty()).then(|| format!("{}{more}", shown.join(", ")))
}

/// That processes of the guest have to be started again. `None` if no process held a value.
pub(super) fn to_be_restarted(receipt: Option<&Receipt>) -> Option<String> {
    let processes = receipt.map_or(&[][..], |receipt| &receipt.processes);
    holding(processes).map(|named| {
        format!(
            "{named} held a credential in the environment or the arguments, and must be restarted in a restored guest"
        )
    })
}

/// What a receipt says, a sentence a line.
pub(super) fn sentences(receipt: Option<&Receipt>) -> Vec<String> {
    let Some(receipt) = receipt else {
        return vec!["credentials: an earlier nixbox made the snapshot, and did not search it".to_owned()];
    };
    let mut sentences = vec![format!("credentials: {}", searched(receipt))];
    sentences.extend(receipt.found.iter().map(|one| format!("found and overwritten: {}", found(one))));
    if !receipt.found.is_empty() {
        sentences.push(
            "programs of the guest that kept an overwritten credential have to be started again after a restore".to_owned(),
        );
    }
    let held = |one: &HoldingProcess| {
        format!("held a credential, and must be restarted after a restore: {}", process(one))
    };
    sentences.extend(receipt.processes.iter().map(held));
    let unproven =
        |UnprovenValue { value, reason }: &UnprovenValue| format!("not proven: {value}, because {reason}");
    sentences.extend(receipt.unproven.iter().map(unproven));
    let unproven =
        |UnprovenPlace { place, reason }: &UnprovenPlace| format!("not proven: {place}, because {reason}");
    sentences.extend(receipt.unproven_places.iter().map(unproven));
    let warning = |TokenWarning { kind, place, count }: &TokenWarning| {
        format!(
            "warning: {count} texts in {place} look like {kind} that nixbox does not know, and were left there"
        )
    };
    sentences.extend(receipt.warnings.iter().map(warning));
    if !receipt.zeroes_freed_memory && !receipt.values.is_empty() {
        sentences.push(
            "not proven: what freed memory may hold in another form, because the guest's kernel has no init_on_free=1"
                .to_owned(),
        );
    }
    sentences.push(format!("on-leak was {:?}", receipt.on_leak.to_string()));
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::OnLeak;

    #[test]
    fn a_receipt_says_what_was_searched_found_and_not_proven() {
        let mut receipt = Receipt {
            on_leak: OnLeak::Redact,
            zeroes_freed_memory: true,
            values: vec!["TOKEN".to_owned(), "~/.npmrc".to_owned()],
            bytes: 3 << 20,
            found: Vec::new(),
            unproven: Vec::new(),
            processes: Vec::new(),
            unproven_places: Vec::new(),
            warnings: Vec::new(),
        };
        assert_eq!(to_be_restarted(Some(&receipt)), None);
        assert_eq!(verdict(Some(&receipt)), "clean");
        assert_eq!(
            sentences(Some(&receipt)),
            ["credentials: 3.00 MiB of data were searched for TOKEN, ~/.npmrc", "on-leak was \"redact\""]
        );
        let [value, place, form] = ["TOKEN", "RAM", "base64"].map(str::to_owned);
        receipt.found.push(FoundValue { value, place, form, count: 2 });
        assert_eq!(verdict(Some(&receipt)), "redacted");
        receipt.unproven.push(UnprovenValue { value: "EDITOR".to_owned(), reason: "it is short".to_owned() });
        receipt.zeroes_freed_memory = false;
        receipt.processes.extend((0..9).map(|pid| HoldingProcess {
            pid,
            program: "java".to_owned(),
            values: vec!["TOKEN".to_owned(), "OTHER".to_owned()],
        }));
        let [place, reason] = ["swap", "it stays on"].map(str::to_owned);
        receipt.unproven_places.push(UnprovenPlace { place, reason });
        let [kind, place] = ["tokens of GitHub", "disk 0"].map(str::to_owned);
        receipt.warnings.push(TokenWarning { kind, place, count: 3 });
        assert_eq!(verdict(Some(&receipt)), "unproven");
        let told = sentences(Some(&receipt)).join("\n");
        for words in [
            "found and overwritten: TOKEN in RAM (base64, 2 times)",
            "started again after a restore",
            "not proven: EDITOR, because it is short",
            "warning: 3 texts in disk 0 look like tokens of GitHub that nixbox does not know",
            "not proven: swap, because it stays on",
            "restarted after a restore: java (process 8: TOKEN, OTHER)",
            "no init_on_free=1",
        ] {
            assert!(told.contains(words), "{told}");
        }
        let told = to_be_restarted(Some(&receipt)).unwrap();
        assert!(told.starts_with("java (process 0: TOKEN, OTHER), java (process 1"), "{told}");
        assert!(told.contains("(process 7: TOKEN, OTHER) and 1 more held a credential"), "{told}");
        assert_eq!(verdict(None), "unsearched");
    }
}
