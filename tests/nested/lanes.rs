//! The nested hosts, side by side: each takes the next scenario that nobody has. A host is busy on one processor at a time,
//! so a machine with two does in half the time what one host would do.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::crashed;
use super::emulation::{Emulation, Ended, Errand, Part, Said};
use super::inside::End;
use super::scenarios::{Run, Scenario};
use super::{Tally, Verdict};

/// What a host may take of memory, in KiB: 6 GiB of its own, and what QEMU needs beside it.
const HOST: u64 = 7 << 20;

/// As many hosts as this machine has processors and memory for, but no more than two: some programs in them wait for the
/// disk, and there is one of it.
fn lanes() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let available: u64 = available.trim_end_matches("kB").trim().parse().unwrap();
    processors.min(2).min((available / HOST) as usize).max(1)
}

/// What a host does at a time.
enum Turn {
    /// Those that share a VM, or one that has its own.
    Together(Vec<&'static Scenario>),
    /// It has hosts of its own, the power of the first of which is cut.
    Cut(&'static Scenario),
}

/// What the lanes share.
struct Board {
    turns: VecDeque<Turn>,
    tries: Tries,
    tally: Tally,
}

/// Runs scenarios, and notes what became of each.
pub(super) fn run(chosen: &[&'static Scenario], mut tally: Tally) -> Tally {
    let emulation = Emulation::prepare();
    let (can, cannot): (Vec<&Scenario>, Vec<&Scenario>) =
        chosen.iter().partition(|scenario| cfg!(feature = "failpoints") || !scenario.failpoints);
    for scenario in cannot {
        tally.note(scenario.name, Verdict::Skipped("needs --features failpoints"), None, String::new);
    }
    let (alone, others): (Vec<&Scenario>, Vec<&Scenario>) =
        can.into_iter().partition(|scenario| scenario.alone);
    let tally = side_by_side(&emulation, others, lanes(), tally);
    side_by_side(&emulation, alone, 1, tally)
}

fn side_by_side(
    emulation: &Emulation,
    scenarios: Vec<&'static Scenario>,
    lanes: usize,
    tally: Tally,
) -> Tally {
    let (standing, others): (Vec<&Scenario>, Vec<&Scenario>) =
        scenarios.into_iter().partition(|scenario| matches!(scenario.run, Run::Standing(_)));
    let mut turns: VecDeque<Turn> = others
        .into_iter()
        .map(|scenario| match scenario.run {
            Run::PowerCut { .. } => Turn::Cut(scenario),
            _ => Turn::Together(vec![scenario]),
        })
        .collect();
    if !standing.is_empty() {
        turns.push_back(Turn::Together(standing));
    }
    let lanes = lanes.min(turns.len());
    let board = Mutex::new(Board { turns, tries: Tries::default(), tally });
    std::thread::scope(|scope| {
        for lane in 0..lanes {
            let board = &board;
            scope.spawn(move || go(emulation, board, &format!("host-{lane}")));
        }
    });
    board.into_inner().unwrap().tally
}

/// Until there is nothing more to do.
fn go(emulation: &Emulation, board: &Mutex<Board>, host: &str) {
    loop {
        let turn = board.lock().unwrap().turns.pop_front();
        match turn {
            None => return,
            Some(Turn::Cut(scenario)) => cut(emulation, board, scenario),
            Some(Turn::Together(first)) => together(emulation, board, host, first),
        }
    }
}

/// What a host is sent for: one turn, and after it whatever else needs no host of its own.
struct Lane<'b> {
    board: &'b Mutex<Board>,
    first: Option<Vec<&'static Scenario>>,
    /// What it was given and has not said the end of.
    left: VecDeque<&'static Scenario>,
}

impl Errand for Lane<'_> {
    fn next(&mut self) -> Vec<&'static Scenario> {
        let next = self.first.take().or_else(|| self.board.lock().unwrap().take_together());
        let next = next.unwrap_or_default();
        self.left.extend(&next);
        next
    }

    fn said(&mut self, said: Said) {
        let Some(at) = self.left.iter().position(|scenario| scenario.name == said.name) else { return };
        let Some(scenario) = self.left.remove(at) else { return };
        let mut board = self.board.lock().unwrap();
        if said.end == End::Crashed && board.once_more(scenario, &said.log) {
            board.turns.push_back(Turn::Together(vec![scenario]));
            return;
        }
        let verdict = if said.end == End::Passed { Verdict::Passed } else { Verdict::Failed };
        board.tally.note(scenario.name, verdict, Some(said.seconds), || said.log);
    }
}

/// One boot of a host, and all that it does.
fn together(emulation: &Emulation, board: &Mutex<Board>, host: &str, first: Vec<&'static Scenario>) {
    let mut lane = Lane { board, first: Some(first), left: VecDeque::new() };
    let ended = emulation.boot(host, None, Part::Whole, &mut lane);
    let Lane { first, mut left, .. } = lane;
    left.extend(first.unwrap_or_default());
    let mut board = board.lock().unwrap();
    // The first of those that are left was running.
    if ended.crashed() && left.front().is_some_and(|scenario| board.once_more(scenario, &host_crashed())) {
        board.turns.push_back(Turn::Together(left.into()));
        return;
    }
    // What one host does not do, another will hardly.
    if matches!(ended, Ended::Broken(_)) {
        left.extend(std::mem::take(&mut board.turns).into_iter().flat_map(|turn| match turn {
            Turn::Together(scenarios) => scenarios,
            Turn::Cut(scenario) => vec![scenario],
        }));
    }
    for scenario in left {
        board.tally.note(scenario.name, Verdict::Failed, None, || {
            format!("the nested host ended before it did: {ended}")
        });
    }
}

/// One that has to be done, and how it ended, if it was.
struct Alone {
    scenario: Option<&'static Scenario>,
    said: Option<Said>,
}

impl Errand for Alone {
    fn next(&mut self) -> Vec<&'static Scenario> {
        self.scenario.take().into_iter().collect()
    }

    fn said(&mut self, said: Said) {
        self.said = Some(said);
    }
}

fn cut(emulation: &Emulation, board: &Mutex<Board>, scenario: &'static Scenario) {
    let since = std::time::Instant::now();
    let done = loop {
        match power_cut(emulation, scenario) {
            Err((why, End::Crashed)) if board.lock().unwrap().once_more(scenario, &why) => {}
            done => break done,
        }
    };
    let verdict = if done.is_ok() { Verdict::Passed } else { Verdict::Failed };
    let seconds = since.elapsed().as_secs_f64();
    let log = || done.err().map(|(why, _)| why).unwrap_or_default();
    board.lock().unwrap().tally.note(scenario.name, verdict, Some(seconds), log);
}

/// With a disk that is there for as long as that takes.
fn power_cut(emulation: &Emulation, scenario: &'static Scenario) -> Result<(), (String, End)> {
    let disk = emulation.disk(scenario.name);
    let done = power_cut_on(emulation, scenario, &disk);
    fs::remove_file(&disk).unwrap();
    done
}

/// One boot up to the cut, and one with the disk of the first.
fn power_cut_on(
    emulation: &Emulation,
    scenario: &'static Scenario,
    disk: &Path,
) -> Result<(), (String, End)> {
    let boot = |part| {
        let mut errand = Alone { scenario: Some(scenario), said: None };
        let ended = emulation.boot(scenario.name, Some(disk), part, &mut errand);
        if ended.crashed() { Err((host_crashed(), End::Crashed)) } else { Ok((ended, errand.said)) }
    };
    let (ended, said) = boot(Part::BeforeCut)?;
    if !matches!(ended, Ended::Cut) {
        let (log, end) = said.map_or((String::new(), End::Failed), |said| (said.log, said.end));
        return Err((format!("before the power cut: {ended}\n{log}"), end));
    }
    let (ended, said) = boot(Part::AfterCut)?;
    match said {
        Some(said) if said.end == End::Passed => Ok(()),
        Some(said) => Err((format!("after the power cut:\n{}", said.log), said.end)),
        None => Err((format!("after the power cut: {ended}"), End::Failed)),
    }
}

impl Board {
    fn take_together(&mut self) -> Option<Vec<&'static Scenario>> {
        let at = self.turns.iter().position(|turn| matches!(turn, Turn::Together(_)))?;
        match self.turns.remove(at) {
            Some(Turn::Together(scenarios)) => Some(scenarios),
            _ => None,
        }
    }

    /// Whether a scenario is tried again, for the emulation crashed; says so, and why.
    fn once_more(&mut self, scenario: &Scenario, log: &str) -> bool {
        let again = self.tries.once_more(scenario);
        if again {
            let why: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix(crashed::EXCUSE)).collect();
            println!("test {} ... once more, for the emulation crashed: {}", scenario.name, why.join("; "));
        }
        again
    }
}

/// How often scenarios were tried again, because the emulation had crashed: each of them at most twice, and all together
/// not more often than an emulation that is any good makes necessary.
#[derive(Default)]
struct Tries(BTreeMap<&'static str, usize>);

impl Tries {
    fn once_more(&mut self, scenario: &Scenario) -> bool {
        let all: usize = self.0.values().sum();
        let own = self.0.entry(scenario.name).or_default();
        *own += 1;
        *own <= 2 && all < 6
    }
}

fn host_crashed() -> String {
    format!("{}the kernel of the emulated host panicked", crashed::EXCUSE)
}
