//! A world of six switches. A transition turns its switch on, and its undo turns it off; a test says which call misbehaves.
//!
//! ```text
//! stage    both          alone    (commit point)   rest
//! switch   FIRST SECOND  THIRD    COMMIT           FIFTH SIXTH
//! id       0     1       2        10               11    12
//! place    0     1       2        3                4     5
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nixbox::engine::executor::{Ending, EngineError, Event, Executor, Observer};
use nixbox::engine::history::TransitionStatus;
use nixbox::engine::journal::{Journal, JournalError, Name, Storage};
use nixbox::engine::record::MAX_PAYLOAD;
use nixbox::engine::transition::{
    AfterCommit, Context, Failure, Generation, Interrupt, Operation, OperationId, Probe, Transition,
    TransitionId, TransitionSpec,
};
use nixbox::fakes::{FakeStorage, Fault, Host, Survival};
use tokio::sync::Barrier;

use crate::harness::WORKSPACE;

/// How long a switch may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
pub(super) const ID: OperationId = OperationId(77);

/// The switches, by the ids of their transitions: see the table above.
pub(super) const FIRST: u16 = 0;
pub(super) const SECOND: u16 = 1;
pub(super) const THIRD: u16 = 2;
pub(super) const COMMIT: u16 = 10;
pub(super) const FIFTH: u16 = 11;
pub(super) const SIXTH: u16 = 12;
/// All of them, by place.
pub(super) const ALL: [u16; 6] = [FIRST, SECOND, THIRD, COMMIT, FIFTH, SIXTH];

/// What the engine asks of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Prepare,
    Probe,
    Apply,
    Undo,
    Conclude,
}

/// How a call does oddly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Odd {
    /// It fails, and has done nothing.
    Fails,
    /// It fails the first time it is asked.
    FailsOnce,
    /// It fails, a second later.
    FailsLate,
    /// It is done, a second later.
    Late,
    /// It never answers.
    Never,
    /// It finds that the VM is gone.
    Lost,
    /// It finds the switch on, or off, or cannot tell.
    Finds(bool),
    CannotTell,
    /// Its outcome is larger than a record.
    Large,
    /// It waits for the other one of its stage.
    Meets,
    /// A second later it looks whether the outcome of the first switch is in the journal.
    SeesItsMateDone,
    /// Somebody asks to stop meanwhile.
    Interrupts,
    /// From now on the journal's medium fails.
    BreaksJournal,
}

pub(super) struct Switches {
    pub(super) host: Host,
    pub(super) interrupt: Interrupt,
    pub(super) on: Mutex<BTreeSet<u16>>,
    pub(super) log: Mutex<Vec<(Call, u16)>>,
    odd: Mutex<BTreeMap<(Call, u16), Odd>>,
    both: Barrier,
    /// How often the journal's content was synced since the journal was made.
    pub(super) syncs: Arc<AtomicU64>,
}

impl Switches {
    pub(super) fn new(odd: &[(Call, u16, Odd)]) -> Self {
        Self {
            host: Host::new(53, false),
            interrupt: Interrupt::new(),
            on: Mutex::default(),
            log: Mutex::default(),
            odd: Mutex::new(odd.iter().map(|(call, switch, odd)| ((*call, *switch), *odd)).collect()),
            both: Barrier::new(2),
            syncs: Arc::default(),
        }
    }

    /// From now on all do as they should.
    pub(super) fn mend(&self) {
        self.odd.lock().unwrap().clear();
    }

    /// The switches of which this was asked, in order.
    pub(super) fn asked(&self, call: Call) -> Vec<u16> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|(made, _)| *made == call).map(|(_, switch)| *switch).collect()
    }

    pub(super) fn on(&self) -> Vec<u16> {
        self.on.lock().unwrap().iter().copied().collect()
    }

    async fn call(&self, call: Call, switch: u16) -> Result<Option<Odd>, Failure> {
        self.log.lock().unwrap().push((call, switch));
        let odd = self.odd.lock().unwrap().get(&(call, switch)).copied();
        match odd {
            Some(Odd::Fails) => Err(Failure::world("it fails")),
            Some(Odd::FailsOnce) => {
                self.odd.lock().unwrap().remove(&(call, switch));
                Err(Failure::world("it fails once"))
            }
            Some(Odd::FailsLate) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(Failure::world("it fails late"))
            }
            Some(Odd::Late) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(odd)
            }
            Some(Odd::Never) => std::future::pending().await,
            Some(Odd::Lost) if call != Call::Probe => Err(Failure::Lost),
            Some(Odd::Meets) => {
                self.both.wait().await;
                Ok(odd)
            }
            Some(Odd::SeesItsMateDone) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(self.written(None)[..2], [TransitionStatus::Done, TransitionStatus::IntentOnly]);
                Ok(odd)
            }
            Some(Odd::Interrupts) => {
                self.interrupt.request();
                Ok(odd)
            }
            Some(Odd::BreaksJournal) => {
                self.host.set_fault(Fault::StorageFails(0, std::io::ErrorKind::StorageFull), None);
                Ok(odd)
            }
            odd => Ok(odd),
        }
    }

    /// What is in the journal, by place, or would be if the power failed now.
    fn written(&self, power_cut: Option<Survival>) -> Vec<TransitionStatus> {
        let host = self.host.fork();
        host.set_fault(Fault::None, None);
        if let Some(survival) = power_cut {
            host.power_cut(survival);
        }
        let journal = Journal::open(host.storage(WORKSPACE), WORKSPACE, Generation(0), 1).unwrap();
        let open = journal.open_operation();
        (0..6)
            .map(|place| open.map_or(TransitionStatus::NeverStarted, |open| open.entry(place).status))
            .collect()
    }
}

/// Turns a switch on. Those before [`COMMIT`], the commit point, can be undone.
struct Switch<const N: u16>;

impl<const N: u16> Transition<Switches> for Switch<N> {
    type Intent = u16;
    type Outcome = Vec<u8>;

    fn spec(&self) -> TransitionSpec {
        let (id, label) = (TransitionId(N), label(N));
        if N < COMMIT {
            TransitionSpec::undoable(id, label, LIMIT)
        } else {
            TransitionSpec::never_undone(id, label, "for a test, that is reason enough", LIMIT)
        }
    }

    async fn prepare(&self, context: &Context<'_, Switches>) -> Result<u16, Failure> {
        context.world.call(Call::Prepare, N).await?;
        Ok(N)
    }

    async fn probe(&self, context: &Context<'_, Switches>, intent: &u16) -> Result<Probe<Vec<u8>>, Failure> {
        assert_eq!(*intent, N);
        let on = match context.world.call(Call::Probe, N).await? {
            Some(Odd::Finds(on)) => on,
            Some(Odd::Lost) => return Ok(Probe::Lost),
            Some(Odd::CannotTell) => return Ok(Probe::CannotTell("it cannot be told".to_owned())),
            _ => context.world.on.lock().unwrap().contains(&N),
        };
        Ok(if on { Probe::Done(vec![1]) } else { Probe::NotDone })
    }

    async fn apply(&self, context: &Context<'_, Switches>, intent: &u16) -> Result<Vec<u8>, Failure> {
        assert_eq!(*intent, N);
        if N != FIRST && context.world.on.lock().unwrap().contains(&FIRST) {
            // Those of the same stage see nothing of each other.
            assert_eq!(
                context.outcome::<Vec<u8>>(TransitionId(FIRST)).is_ok(),
                N != SECOND,
                "{N} asks for the outcome of FIRST"
            );
        }
        // A transition that is not in the table has no outcome, and neither has the one that is about to be applied, perhaps for
        // the second time.
        assert!(matches!(
            context.outcome::<Vec<u8>>(TransitionId(99)),
            Err(Failure::NoOutcome(TransitionId(99)))
        ));
        assert!(
            matches!(context.outcome::<Vec<u8>>(TransitionId(N)), Err(Failure::NoOutcome(TransitionId(id))) if id == N)
        );
        on_the_medium(context.world, N);
        let odd = context.world.call(Call::Apply, N).await?;
        assert_eq!(context.interrupt.requested(), N <= COMMIT && context.world.interrupt.requested());
        context.world.on.lock().unwrap().insert(N);
        Ok(if odd == Some(Odd::Large) { vec![7; MAX_PAYLOAD - 20] } else { vec![1] })
    }

    async fn undo(&self, context: &Context<'_, Switches>, intent: &u16) -> Result<(), Failure> {
        assert_eq!(*intent, N);
        assert!(!context.interrupt.requested());
        context.world.call(Call::Undo, N).await?;
        context.world.on.lock().unwrap().remove(&N);
        Ok(())
    }
}

/// What acts has its intent on the medium, and that of its stage-mates; and the commit point is done there before
/// anything after it acts.
fn on_the_medium(switches: &Switches, switch: u16) {
    let durable = switches.written(Some(Survival::Nothing));
    let stage = match switch {
        FIRST | SECOND => 0..2,
        THIRD => 2..3,
        COMMIT => 3..4,
        _ => 4..6,
    };
    for place in stage {
        assert!(
            durable[place] >= TransitionStatus::IntentOnly,
            "{switch} acts, and on the medium is {durable:?}"
        );
    }
    assert!(
        switch <= COMMIT || durable[3] == TransitionStatus::Done,
        "{switch} acts, and on the medium is {durable:?}"
    );
}

const fn label(switch: u16) -> &'static str {
    match switch {
        FIRST => "first",
        SECOND => "second",
        THIRD => "third",
        COMMIT => "commit",
        FIFTH => "fifth",
        SIXTH => "sixth",
        _ => "none",
    }
}

/// The operation of the table above.
pub(super) fn table(forward: AfterCommit) -> Operation<Switches> {
    Operation::new(ID, "switches", forward, |context: Context<'_, Switches>, ended| {
        Box::pin(async move {
            context.world.call(Call::Conclude, FIRST).await?;
            Ok(format!("{ended:?}").into_bytes())
        })
    })
    .stage("both", vec![Box::new(Switch::<FIRST>), Box::new(Switch::<SECOND>)])
    .stage("alone", vec![Box::new(Switch::<THIRD>)])
    .commit(Box::new(Switch::<COMMIT>))
    .stage("rest", vec![Box::new(Switch::<FIFTH>), Box::new(Switch::<SIXTH>)])
}

/// The journal's files, with the syncs counted.
pub(super) struct Counted {
    inner: FakeStorage,
    syncs: Arc<AtomicU64>,
}

impl Storage for Counted {
    fn size(&mut self, name: Name) -> std::io::Result<Option<u64>> {
        self.inner.size(name)
    }
    fn read_at(&mut self, name: Name, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read_at(name, offset, buffer)
    }
    fn append(&mut self, name: Name, bytes: &[u8]) -> std::io::Result<()> {
        self.inner.append(name, bytes)
    }
    fn reserve(&mut self, name: Name, bytes: u64) -> std::io::Result<()> {
        self.inner.reserve(name, bytes)
    }
    fn sync(&mut self, name: Name) -> std::io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync(name)
    }
    fn truncate(&mut self, name: Name, size: u64) -> std::io::Result<()> {
        self.inner.truncate(name, size)
    }
    fn remove(&mut self, name: Name) -> std::io::Result<()> {
        self.inner.remove(name)
    }
    fn link(&mut self, from: Name, to: Name) -> std::io::Result<()> {
        self.inner.link(from, to)
    }
    fn rename(&mut self, from: Name, to: Name) -> std::io::Result<()> {
        self.inner.rename(from, to)
    }
    fn sync_names(&mut self) -> std::io::Result<()> {
        self.inner.sync_names()
    }
    fn path(&self, name: Name) -> String {
        self.inner.path(name)
    }
    fn salt(&mut self) -> std::io::Result<u64> {
        self.inner.salt()
    }
}

pub(super) fn open(switches: &Switches) -> Result<Journal<Counted>, JournalError> {
    switches.host.set_fault(Fault::None, None);
    let storage = Counted { inner: switches.host.storage(WORKSPACE), syncs: Arc::clone(&switches.syncs) };
    Journal::open(storage, WORKSPACE, Generation(0), 1)
}

/// Keeps what is said.
#[derive(Default)]
pub(super) struct Listener(pub(super) Mutex<Vec<Event>>);

impl Observer for Listener {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

/// Whether an operation is begun, or the one in the journal taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Fresh,
    Recovery,
}

/// Lets the executor run a table in a time that passes only when everybody waits.
pub(super) fn execute(
    switches: &Switches,
    operation: &Operation<Switches>,
    start: Start,
    listener: &Listener,
) -> Result<Ending, EngineError> {
    let mut journal = open(switches).unwrap();
    let mut executor = Executor {
        world: switches,
        journal: &mut journal,
        interrupt: switches.interrupt.clone(),
        unix_ms: Box::new(|| 2),
        observer: listener,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        match start {
            Start::Fresh => executor.run(operation, b"what").await,
            Start::Recovery => executor.recover(operation).await,
        }
    })
}

pub(super) fn run(switches: &Switches) -> Result<Ending, EngineError> {
    execute(switches, &table(AfterCommit::ClearAway), Start::Fresh, &Listener::default())
}

pub(super) fn recover(switches: &Switches, forward: AfterCommit) -> Result<Ending, EngineError> {
    execute(switches, &table(forward), Start::Recovery, &Listener::default())
}
