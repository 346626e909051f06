//! Runs the scenarios in nested hosts and gives a verdict on each.
//!
//! Hosts run side by side, and each takes the next scenario that has not begun. A host is busy on one processor at a time, so
//! a machine with two processors needs half the time that one host would need.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, mpsc};

use super::crashed;
use super::emulation::{Emulation, Ended, Errand, Part, Said};
use super::inside::End;
use super::scenarios::{Run, Scenario};

/// What a host may take of memory, in KiB: 6 GiB of its own, and what QEMU needs beside it.
const HOST: u64 = 7 << 20;

/// The number of hosts: as many as this machine has processors and memory for, but at most two, because some programs in
/// them wait for the disk, and there is one disk.
fn hosts() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let available: u64 = available.trim_end_matches("kB").trim().parse().unwrap();
    processors.min(2).min((available / HOST) as usize).max(1)
}

/// What became of a scenario.
#[derive(Debug)]
pub(super) enum Verdict {
    Passed,
    /// With what it wrote.
    Failed(String),
    /// With the reason.
    Skipped(String),
}

/// The tests that wait for verdicts, by name.
#[derive(Debug, Default)]
pub(super) struct Verdicts(BTreeMap<&'static str, mpsc::Sender<Verdict>>);

impl Verdicts {
    /// Where the verdict on `scenario` will come.
    pub(super) fn expect(&mut self, scenario: &Scenario) -> mpsc::Receiver<Verdict> {
        let (sender, receiver) = mpsc::channel();
        self.0.insert(scenario.name, sender);
        receiver
    }

    fn give(&self, scenario: &Scenario, verdict: Verdict) {
        self.0[scenario.name].send(verdict).expect("its test waits for it");
    }

    /// The verdict on a scenario that ran, with the time that it took.
    fn ran(&self, scenario: &Scenario, passed: bool, seconds: f64, log: String) {
        println!("{} took {seconds:.0} s", scenario.name);
        if passed {
            // What was measured is worth a line of its own, and no verdict.
            log.lines().filter(|line| line.starts_with("FIGURE ")).for_each(|line| println!("{line}"));
        }
        self.give(scenario, if passed { Verdict::Passed } else { Verdict::Failed(log) });
    }
}

/// What a host does at a time.
enum Turn {
    /// The scenarios that share a VM, or one that has its own.
    Together(Vec<&'static Scenario>),
    /// A scenario with hosts of its own, the power of the first of which is cut.
    Cut(&'static Scenario),
}

/// What the hosts share.
struct Schedule<'v> {
    turns: VecDeque<Turn>,
    tries: Tries,
    verdicts: &'v Verdicts,
}

/// Runs scenarios, and gives the verdict on each.
pub(super) fn run(chosen: &[&'static Scenario], verdicts: Verdicts) {
    let mut emulation = Emulation::prepare();
    let (mut can, cannot): (Vec<&Scenario>, Vec<&Scenario>) =
        chosen.iter().partition(|scenario| cfg!(feature = "failpoints") || !scenario.failpoints);
    let skip = |scenarios: Vec<&Scenario>, reason: &str| {
        for scenario in scenarios {
            let verdict = match super::all_promised() {
                true => Verdict::Failed(reason.to_owned()),
                false => Verdict::Skipped(reason.to_owned()),
            };
            verdicts.give(scenario, verdict);
        }
    };
    skip(cannot, "needs --features failpoints");
    if can.iter().any(|scenario| scenario.debian)
        && let Err(error) = emulation.add_debian()
    {
        let (on_debian, others) = can.into_iter().partition(|scenario| scenario.debian);
        skip(on_debian, &error.to_string());
        can = others;
    }
    let (on_debian, can): (Vec<&Scenario>, Vec<&Scenario>) =
        can.into_iter().partition(|scenario| scenario.debian);
    let (alone, others): (Vec<&Scenario>, Vec<&Scenario>) =
        can.into_iter().partition(|scenario| scenario.alone);
    side_by_side(&emulation, others, hosts(), &verdicts);
    side_by_side(&emulation, alone, 1, &verdicts);
    emulation.enlarge_hosts();
    side_by_side(&emulation, on_debian, 1, &verdicts);
}

fn side_by_side(emulation: &Emulation, scenarios: Vec<&'static Scenario>, hosts: usize, verdicts: &Verdicts) {
    let (sharing, others): (Vec<&Scenario>, Vec<&Scenario>) =
        scenarios.into_iter().partition(|scenario| matches!(scenario.run, Run::SharedVm(_)));
    let mut turns: VecDeque<Turn> = others
        .into_iter()
        .map(|scenario| match scenario.run {
            Run::PowerCut { .. } => Turn::Cut(scenario),
            _ => Turn::Together(vec![scenario]),
        })
        .collect();
    if !sharing.is_empty() {
        turns.push_back(Turn::Together(sharing));
    }
    let hosts = hosts.min(turns.len());
    let schedule = Mutex::new(Schedule { turns, tries: Tries::default(), verdicts });
    std::thread::scope(|scope| {
        for host in 0..hosts {
            let schedule = &schedule;
            scope.spawn(move || take_turns(emulation, schedule, &format!("host-{host}")));
        }
    });
}

/// Takes turns until none is left.
fn take_turns(emulation: &Emulation, schedule: &Mutex<Schedule<'_>>, host: &str) {
    loop {
        let turn = schedule.lock().unwrap().turns.pop_front();
        match turn {
            None => return,
            Some(Turn::Cut(scenario)) => cut(emulation, schedule, scenario),
            Some(Turn::Together(first)) => together(emulation, schedule, host, first),
        }
    }
}

/// What a host is booted for: one turn, and after it every turn that needs no host of its own.
struct SharedHost<'s, 'v> {
    schedule: &'s Mutex<Schedule<'v>>,
    first: Option<Vec<&'static Scenario>>,
    /// The scenarios that it was given and has not said the end of.
    left: VecDeque<&'static Scenario>,
}

impl Errand for SharedHost<'_, '_> {
    fn next(&mut self) -> Vec<&'static Scenario> {
        let next = self.first.take().or_else(|| self.schedule.lock().unwrap().take_together());
        let next = next.unwrap_or_default();
        self.left.extend(&next);
        next
    }

    fn said(&mut self, said: Said) {
        let Some(at) = self.left.iter().position(|scenario| scenario.name == said.name) else { return };
        let Some(scenario) = self.left.remove(at) else { return };
        let mut schedule = self.schedule.lock().unwrap();
        if said.end == End::Crashed && schedule.once_more(scenario, &said.log) {
            schedule.turns.push_back(Turn::Together(vec![scenario]));
            return;
        }
        schedule.verdicts.ran(scenario, said.end == End::Passed, said.seconds, said.log);
    }
}

/// One boot of a host, and all that it does.
fn together(
    emulation: &Emulation,
    schedule: &Mutex<Schedule<'_>>,
    host: &str,
    first: Vec<&'static Scenario>,
) {
    let mut errand = SharedHost { schedule, first: Some(first), left: VecDeque::new() };
    let ended = emulation.boot(host, None, Part::Whole, &mut errand);
    let SharedHost { first, mut left, .. } = errand;
    left.extend(first.unwrap_or_default());
    let mut schedule = schedule.lock().unwrap();
    // The first of those that are left was running.
    if ended.crashed() && left.front().is_some_and(|scenario| schedule.once_more(scenario, &host_crashed())) {
        schedule.turns.push_back(Turn::Together(left.into()));
        return;
    }
    // What broke this host will break another one.
    if matches!(ended, Ended::Broken(_)) {
        left.extend(std::mem::take(&mut schedule.turns).into_iter().flat_map(|turn| match turn {
            Turn::Together(scenarios) => scenarios,
            Turn::Cut(scenario) => vec![scenario],
        }));
    }
    for scenario in left {
        let log = format!("the nested host ended before it did: {ended}");
        schedule.verdicts.give(scenario, Verdict::Failed(log));
    }
}

/// One scenario that a host is booted for alone, and how it ended, if it did.
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

fn cut(emulation: &Emulation, schedule: &Mutex<Schedule<'_>>, scenario: &'static Scenario) {
    let since = std::time::Instant::now();
    let done = loop {
        match power_cut(emulation, scenario) {
            Err((why, End::Crashed)) if schedule.lock().unwrap().once_more(scenario, &why) => {}
            done => break done,
        }
    };
    let passed = done.is_ok();
    let log = done.err().map(|(why, _)| why).unwrap_or_default();
    schedule.lock().unwrap().verdicts.ran(scenario, passed, since.elapsed().as_secs_f64(), log);
}

/// Runs both boots, on a disk that is removed after them.
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

impl Schedule<'_> {
    fn take_together(&mut self) -> Option<Vec<&'static Scenario>> {
        let at = self.turns.iter().position(|turn| matches!(turn, Turn::Together(_)))?;
        match self.turns.remove(at) {
            Some(Turn::Together(scenarios)) => Some(scenarios),
            _ => None,
        }
    }

    /// Whether a scenario is tried once more, because the emulation crashed. Prints a line that says so, and why.
    fn once_more(&mut self, scenario: &Scenario, log: &str) -> bool {
        let again = self.tries.once_more(scenario);
        if again {
            let why: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix(crashed::EXCUSE)).collect();
            println!("{} runs once more, because the emulation crashed: {}", scenario.name, why.join("; "));
        }
        again
    }
}

/// How often scenarios were tried once more because the emulation had crashed: each scenario at most twice, and all scenarios
/// together at most six times, since an emulation that crashes more often tests nothing.
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
