//! Finds the guest's processes that have a known value in their environment or in their arguments.
//!
//! A wipe does not reach them. In the snapshot the value is overwritten, so that after a restore such a process has a
//! useless one: it has to be started again, and the receipt names it. The guest sends environments and arguments over the
//! connection, and nixbox searches them by fingerprints. So no value goes to the guest for it.
//!
//! nixbox's own scripts are left out. Everything that the guest sends is bounded, and may be any bytes: a process chooses
//! its name, its arguments and its environment itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::script_items::{ScriptItem, ScriptItems, are_whole};
use super::shell::{Rights, ScriptError, Shell};
use crate::files::search::known::KnownValues;
use crate::files::search::searcher::Searcher;
use crate::files::search::value::Treatment;
use crate::world::{GuestAudit, HoldingProcess, UnprovenPlace};

/// The most bytes that are read of one environment, and of one list of arguments.
const MOST_OF_ONE: usize = 256 << 10;
/// The most bytes that are read of all of them.
const MOST: usize = 16 << 20;
/// The most processes that are named.
const MOST_NAMED: usize = 128;
/// The time limit. A process that the guest's kernel holds up may hold up who reads its environment.
const LIMIT: Duration = Duration::from_secs(30);

/// What the processes are called where they cannot be examined.
pub(super) const ALL: &str = "the environments and arguments of the guest's processes";

/// The script. A process may end at any time; what is told of it until then counts.
fn script() -> String {
    format!(
        r#"for p in /proc/[0-9]*; do
  c=
  {{ read -r c < "$p/comm"; }} 2>/dev/null || continue
  item process "${{p##*/}}" "$c"
  for f in environ cmdline; do
    item "$f"
    head -c {MOST_OF_ONE} "$p/$f" 2>/dev/null || [ ! -e "$p/$f" ] || item unread
  done
done"#
    )
}

/// Finds the processes that hold one of these values. What the script cannot read is named in the answer.
///
/// # Errors
/// Any [`ScriptError`].
pub(super) async fn holding(shell: &Shell, known: &KnownValues) -> Result<GuestAudit, ScriptError> {
    let what = "read the environments of the guest's processes";
    let told = ScriptItems::of(shell, what, Rights::Root, &script(), MOST, LIMIT).await?;
    Ok(judge(&told.items(), known, shell.mark.as_str()))
}

/// What is known of one process.
#[derive(Default)]
struct ExaminedProcess {
    program: String,
    values: BTreeSet<String>,
    is_own: bool,
    /// Whether something of it could not be read.
    unread: bool,
    /// Whether something of it is longer than what was read.
    cut: bool,
}

fn judge(items: &[ScriptItem<'_>], known: &KnownValues, own_mark: &str) -> GuestAudit {
    let found = search(items, known, own_mark);
    let numbers_of = |is: fn(&ExaminedProcess) -> bool| -> Vec<u32> {
        found.iter().filter(|(_, process)| is(process)).map(|(pid, _)| *pid).collect()
    };
    let (unread, cut) = (numbers_of(|process| process.unread), numbers_of(|process| process.cut));
    let holds = |process: &ExaminedProcess| !process.is_own && !process.values.is_empty();
    let named = found.into_iter().filter(|(_, process)| holds(process)).map(|(pid, process)| {
        let ExaminedProcess { program, values, .. } = process;
        HoldingProcess { pid, program, values: values.into_iter().collect() }
    });
    let mut processes: Vec<HoldingProcess> = named.collect();
    let left_out = processes.len().saturating_sub(MOST_NAMED);
    processes.truncate(MOST_NAMED);
    let doubts = [
        (!are_whole(items), ALL.to_owned(), format!("the guest has more than {} MiB of them", MOST >> 20)),
        (
            left_out > 0,
            format!("{left_out} more processes"),
            "they hold a value too, and are too many to be named".to_owned(),
        ),
        (!unread.is_empty(), numbers(&unread), "their environment or arguments cannot be read".to_owned()),
        (
            !cut.is_empty(),
            numbers(&cut),
            format!("only the first {} KiB of their environment or arguments were read", MOST_OF_ONE >> 10),
        ),
    ];
    let doubts = doubts.into_iter().filter(|(is_so, ..)| *is_so);
    GuestAudit {
        processes,
        unproven: doubts.map(|(_, place, reason)| UnprovenPlace { place, reason }).collect(),
    }
}

/// Searches what the script has told of each process, by its number.
fn search(items: &[ScriptItem<'_>], known: &KnownValues, own_mark: &str) -> BTreeMap<u32, ExaminedProcess> {
    let searcher = known.searcher();
    let mut processes: BTreeMap<u32, ExaminedProcess> = BTreeMap::new();
    let mut current = None;
    for ScriptItem { header, body } in items {
        let text = String::from_utf8_lossy(header);
        let mut words = text.splitn(3, ' ');
        let (kind, pid) = (words.next().unwrap_or_default(), words.next().map(str::parse::<u32>));
        if let ("process", Some(Ok(pid))) = (kind, &pid) {
            current = Some(*pid);
            let program = words.next().unwrap_or_default();
            processes.entry(*pid).or_default().program = name_of(program, known, &searcher);
            continue;
        }
        let Some(process) = current.and_then(|pid| processes.get_mut(&pid)) else { continue };
        match kind {
            "environ" | "cmdline" => {
                process.values.extend(held(body, known, &searcher));
                process.is_own |= contains(body, own_mark.as_bytes());
                process.cut |= body.len() >= MOST_OF_ONE;
            }
            "unread" => process.unread = true,
            _ => {}
        }
    }
    processes
}

/// Processes by their numbers, as many as a line has room for.
fn numbers(pids: &[u32]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = pids.iter().take(SHOWN).map(u32::to_string).collect();
    let more = match pids.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("processes {}{more} of the guest", shown.join(", "))
}

/// The names of the values that these bytes hold. A value that looks like words and is written in the configuration is no
/// secret, and is in many processes.
fn held(bytes: &[u8], known: &KnownValues, searcher: &Searcher) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    searcher.search(bytes, usize::MAX, |hit| {
        let value = known.values().get(hit.value as usize);
        names.extend(
            value.filter(|value| value.treatment != Treatment::Ordinary).map(|value| value.name.clone()),
        );
    });
    names
}

/// The name of a program, as it may be printed.
fn name_of(program: &str, known: &KnownValues, searcher: &Searcher) -> String {
    if !held(program.as_bytes(), known, searcher).is_empty() {
        return "a program whose name holds the value".to_owned();
    }
    program.chars().filter(|letter| !letter.is_control()).take(16).collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::search::value::{NamedValue, ValueKind};
    use crate::world::Secret;

    const TOKEN: &str = "glpat-0123456789abcdefghij";

    fn known() -> KnownValues {
        let value = |name: &str, kind, content: &str| NamedValue {
            name: name.to_owned(),
            kind,
            content: Secret::new(content.as_bytes().to_vec()),
        };
        let values = [
            value("TOKEN", ValueKind::Read, TOKEN),
            value("PASSWORD", ValueKind::Read, "correct horse"),
            value("PAGER", ValueKind::Written, "/usr/bin/pager"),
        ];
        KnownValues::with(None, &values).unwrap()
    }

    fn audit(items: &[(&str, &[u8])]) -> GuestAudit {
        let items = items.iter().map(|(header, body)| ScriptItem { header: header.as_bytes(), body });
        judge(&items.collect::<Vec<_>>(), &known(), "nixbox-script:own")
    }

    fn process(pid: u32, program: &str, values: &[&str]) -> HoldingProcess {
        let values = values.iter().map(|name| (*name).to_owned()).collect();
        HoldingProcess { pid, program: program.to_owned(), values }
    }

    #[test]
    fn processes_are_named_with_the_values_that_they_hold() {
        let environment = format!("PAGER=/usr/bin/pager\0A={TOKEN}\0B=correct horse\0");
        let audit = audit(&[
            ("process 1 init", b""),
            ("environ", b"PAGER=/usr/bin/pager\0"),
            ("cmdline", b"/sbin/init\0"),
            ("process 20 java (main)", b""),
            ("environ", environment.as_bytes()),
            ("cmdline", b"java\0-jar\0"),
            ("process 7 curl", b""),
            ("environ", b""),
            ("cmdline", format!("curl\0-H\0Authorization: {TOKEN}\0").as_bytes()),
            ("process 9 sh", b""),
            ("environ", format!("A={TOKEN}\0").as_bytes()),
            ("cmdline", b"sh\0-c\0: nixbox-script:own\0"),
            ("end", b""),
        ]);
        let processes =
            vec![process(7, "curl", &["TOKEN"]), process(20, "java (main)", &["PASSWORD", "TOKEN"])];
        assert_eq!(audit, GuestAudit { processes, unproven: Vec::new() });
    }

    #[test]
    fn what_was_not_read_is_said() {
        let long = vec![b'x'; MOST_OF_ONE];
        let told = [
            ("process 3 a\x1b[2J", &b""[..]),
            ("environ", TOKEN.as_bytes()),
            ("unread", b""),
            ("cmdline", &long),
        ];
        let GuestAudit { processes, unproven } = audit(&told);
        assert_eq!(processes, [process(3, "a[2J", &["TOKEN"])]);
        let said: Vec<String> = unproven.iter().map(|one| format!("{}: {}", one.place, one.reason)).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(
            said[0].contains("more than 16 MiB") && said[1].starts_with("processes 3 of the guest"),
            "{said:?}"
        );
        assert!(said[2].contains("first 256 KiB"), "{said:?}");
    }

    #[test]
    fn a_guest_can_make_nixbox_print_neither_a_value_nor_a_long_list() {
        let named = format!("process 5 {}", &TOKEN[..15]);
        let known_part = NamedValue {
            name: "PART".to_owned(),
            kind: ValueKind::Read,
            content: Secret::new(TOKEN.as_bytes()[..15].to_vec()),
        };
        let known = KnownValues::with(Some(known()), &[known_part]).unwrap();
        let items = [
            ScriptItem { header: named.as_bytes(), body: b"" },
            ScriptItem { header: b"environ", body: TOKEN.as_bytes() },
            ScriptItem { header: b"end", body: b"" },
        ];
        assert!(!judge(&items, &known, "x").processes[0].program.contains("glpat"));

        let headers: Vec<String> = (0..1000).map(|pid| format!("process {pid} x")).collect();
        let mut told: Vec<(&str, &[u8])> = Vec::new();
        for header in &headers {
            told.extend([(header.as_str(), &b""[..]), ("environ", TOKEN.as_bytes())]);
        }
        told.push(("end", b""));
        let GuestAudit { processes, unproven } = audit(&told);
        assert_eq!(processes.len(), MOST_NAMED);
        assert_eq!(unproven[0].place, "872 more processes");
    }
}
