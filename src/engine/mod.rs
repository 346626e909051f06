//! The staged state machine and its crash-recovery journal.
//!
//! The engine knows nothing of VMs. It is generic over the world that it changes, and it does no I/O but through
//! [`journal::Storage`]. An *operation* is a table of stages; a *stage* is a set of *transitions* that run at the same
//! time; a transition is one change of the world, written to the journal before it is made. One transition of each
//! operation is its *commit point*: an operation that was interrupted before it is undone, and one that was interrupted
//! after it is completed.
//!
//! [`transition`] has what a user of the engine implements, [`planner`] the decision table of a recovery, and
//! [`executor`] the only loop that runs anything. [`record`], [`reader`], [`journal`] and [`history`] are the journal,
//! from its bytes up to the status of every transition.
//!
//! # Example
//!
//! Two switches are to be on together or not at all. The program dies in the middle, once before it has turned the
//! second one on and once after; each time the next run finds the open operation in the journal and recovers it.
//!
//! ```
//! use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
//! use std::time::Duration;
//!
//! use futures_util::FutureExt;
//! use nixbox::engine::executor::{Ending, Executor, Unobserved};
//! use nixbox::engine::journal::{Journal, Name, Storage};
//! use nixbox::engine::record::WorkspaceId;
//! use nixbox::engine::transition::*;
//!
//! /// The world that the engine changes.
//! #[derive(Default)]
//! struct Switches([AtomicBool; 2]);
//!
//! #[derive(Clone, Copy, PartialEq)]
//! enum Dies { Never, BeforeItActs, AfterItHasActed }
//!
//! /// A transition: it turns a switch on, unless the program dies.
//! struct TurnOn(usize, Dies);
//!
//! impl Transition<Switches> for TurnOn {
//!     type Intent = ();
//!     type Outcome = ();
//!
//!     fn spec(&self) -> TransitionSpec {
//!         const LIMIT: Duration = Duration::from_secs(1);
//!         match self.0 {
//!             0 => TransitionSpec::undoable(TransitionId(1), "first switch", LIMIT),
//!             _ => TransitionSpec::never_undone(TransitionId(2), "second switch", "it is the commit point", LIMIT),
//!         }
//!     }
//!
//!     async fn prepare(&self, _: &Context<'_, Switches>) -> Result<(), Failure> {
//!         Ok(())
//!     }
//!
//!     async fn probe(&self, context: &Context<'_, Switches>, _: &()) -> Result<Probe<()>, Failure> {
//!         let on = context.world.0[self.0].load(SeqCst);
//!         Ok(if on { Probe::Done(()) } else { Probe::NotDone })
//!     }
//!
//!     async fn apply(&self, context: &Context<'_, Switches>, _: &()) -> Result<(), Failure> {
//!         if self.1 == Dies::BeforeItActs { std::future::pending::<()>().await }
//!         context.world.0[self.0].store(true, SeqCst);
//!         if self.1 == Dies::AfterItHasActed { std::future::pending::<()>().await }
//!         Ok(())
//!     }
//!
//!     async fn undo(&self, context: &Context<'_, Switches>, _: &()) -> Result<(), Failure> {
//!         context.world.0[self.0].store(false, SeqCst);
//!         Ok(())
//!     }
//! }
//!
//! /// The table: a stage with the first switch, and then the commit point.
//! fn both_on(dies: Dies) -> Operation<Switches> {
//!     Operation::new(OperationId(1), "both on", AfterCommit::Stuck, |_, _| async { Ok(vec![]) }.boxed())
//!         .stage("first", vec![Box::new(TurnOn(0, Dies::Never))])
//!         .commit(Box::new(TurnOn(1, dies)))
//! }
//!
//! # use std::{collections::BTreeMap, io, sync::{Arc, Mutex}};
//! # /// The files of a journal.
//! # #[derive(Clone, Default)]
//! # struct Medium(Arc<Mutex<BTreeMap<Name, Vec<u8>>>>);
//! # impl Medium {
//! #     fn with<T>(&self, call: impl FnOnce(&mut BTreeMap<Name, Vec<u8>>) -> T) -> io::Result<T> {
//! #         Ok(call(&mut self.0.lock().unwrap()))
//! #     }
//! # }
//! # impl Storage for Medium {
//! #     fn size(&mut self, name: Name) -> io::Result<Option<u64>> {
//! #         self.with(|files| files.get(&name).map(|file| file.len() as u64))
//! #     }
//! #     fn read_at(&mut self, name: Name, offset: u64, mut buffer: &mut [u8]) -> io::Result<usize> {
//! #         self.with(|files| io::Write::write(&mut buffer, &files[&name][offset as usize..]))?
//! #     }
//! #     fn append(&mut self, name: Name, bytes: &[u8]) -> io::Result<()> {
//! #         self.with(|files| files.entry(name).or_default().extend_from_slice(bytes))
//! #     }
//! #     fn truncate(&mut self, name: Name, size: u64) -> io::Result<()> {
//! #         self.with(|files| files.entry(name).or_default().truncate(size as usize))
//! #     }
//! #     fn remove(&mut self, name: Name) -> io::Result<()> {
//! #         self.with(|files| { files.remove(&name); })
//! #     }
//! #     fn link(&mut self, from: Name, to: Name) -> io::Result<()> {
//! #         self.with(|files| { files.insert(to, files[&from].clone()); })
//! #     }
//! #     fn rename(&mut self, from: Name, to: Name) -> io::Result<()> {
//! #         self.with(|files| { let file = files.remove(&from).unwrap(); files.insert(to, file); })
//! #     }
//! #     fn reserve(&mut self, _: Name, _: u64) -> io::Result<()> { Ok(()) }
//! #     fn sync(&mut self, _: Name) -> io::Result<()> { Ok(()) }
//! #     fn sync_names(&mut self) -> io::Result<()> { Ok(()) }
//! #     fn path(&self, name: Name) -> String { name.file_name().to_owned() }
//! #     fn salt(&mut self) -> io::Result<u64> { Ok(7) }
//! # }
//! #
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     for (dies, end) in [(Dies::BeforeItActs, [false, false]), (Dies::AfterItHasActed, [true, true])] {
//!         let world = Switches::default();
//!         let is_on = || world.0.each_ref().map(|switch| switch.load(SeqCst));
//!         let medium = Medium::default(); // A `Storage` that keeps its files in memory.
//!         let journal = || Journal::open(medium.clone(), WorkspaceId([1; 16]), Generation(0), 0);
//!
//!         // The future is polled until the program dies, and dropped.
//!         assert!(executor(&world, &mut journal()?).run(&both_on(dies), b"").now_or_never().is_none());
//!         assert_eq!(is_on(), [true, dies == Dies::AfterItHasActed]);
//!
//!         // The commit point has an intent and no outcome, so that its probe decides the direction.
//!         let mut journal = journal()?;
//!         let ending = executor(&world, &mut journal).recover(&both_on(Dies::Never)).await?;
//!         assert_eq!(matches!(ending, Ending::Done), end == [true, true]);
//!         assert_eq!(matches!(ending, Ending::RolledBack(None)), end == [false, false]);
//!         assert_eq!(is_on(), end);
//!         assert!(journal.open_operation().is_none());
//!     }
//!     Ok(())
//! }
//!
//! fn executor<'a>(world: &'a Switches, journal: &'a mut Journal<Medium>) -> Executor<'a, Switches, Medium> {
//!     Executor { world, journal, interrupt: Interrupt::new(), unix_ms: Box::new(|| 0), observer: &Unobserved }
//! }
//! ```

pub mod executor;
pub mod history;
pub mod ids;
pub mod journal;
pub mod planner;
pub mod reader;
pub mod record;
pub mod transition;
