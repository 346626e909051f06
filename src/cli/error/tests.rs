use super::*;
use crate::engine::executor::EngineError;
use crate::engine::journal::JournalError;
use crate::operations::Refusal;

#[test]
fn a_chain_names_every_cause_once() {
    let io = io::Error::new(io::ErrorKind::NotFound, "it is gone");
    let poisoned = || JournalError::Poisoned { path: "journal".to_owned() };
    let nested = CliError::Vmm(Failure::world(CliError::Kvm(io)));
    assert_eq!(chain(&nested), "Cloud Hypervisor cannot be used: /dev/kvm cannot be opened: it is gone");
    // Two of these layers are transparent.
    assert_eq!(chain(&Refusal::Engine(EngineError::Journal(poisoned()))), poisoned().to_string());
}

#[test]
fn an_interrupted_operation_has_the_exit_code_of_sigint_only_if_it_was_rolled_back() {
    let failure = || TransitionFailure { label: "boot", failure: Failure::Interrupted };
    let exit = |result| check_result(result).map_err(|problem| problem.exit());
    assert_eq!(exit(OperationResult::Done), Ok(true));
    assert_eq!(exit(OperationResult::Already), Ok(false));
    assert_eq!(exit(OperationResult::RolledBack(failure())), Err(ExitKind::Interrupted));
    assert_eq!(exit(OperationResult::ReplacedInVain(failure())), Err(ExitKind::Interrupted));
    assert_eq!(exit(OperationResult::ClearedAway(failure())), Err(ExitKind::Failed));
    assert_eq!(exit(OperationResult::Stuck(failure())), Err(ExitKind::Stuck));
    let failure = TransitionFailure { label: "boot", failure: Failure::Lost };
    assert_eq!(exit(OperationResult::RolledBack(failure)), Err(ExitKind::Failed));
}
