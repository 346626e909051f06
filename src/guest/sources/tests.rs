use super::*;
use crate::world::HostPath;

fn name(text: &str) -> VariableName {
    text.parse().unwrap()
}

fn plain(text: &str) -> SecretSource {
    SecretSource::Plain(Secret::new(text.as_bytes().to_vec()))
}

fn file(path: &Path) -> SecretSource {
    SecretSource::File(HostPath::below(path, "."))
}

fn command(words: &[&str]) -> SecretSource {
    let (program, arguments) = words.split_first().unwrap();
    let arguments = arguments.iter().map(|word| Secret::new(word.as_bytes().to_vec())).collect();
    SecretSource::Command(SecretCommand { program: (*program).to_owned(), arguments })
}

async fn resolve(source: &SecretSource) -> Result<Secret, SourceError> {
    PendingSources::default().resolve(source).await
}

async fn value(source: SecretSource) -> Vec<u8> {
    resolve(&source).await.unwrap().expose().to_vec()
}

#[tokio::test]
async fn each_kind_of_source_gives_its_value() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, b"\0\xff\n").unwrap();
    assert_eq!(value(plain("p")).await, b"p");
    assert_eq!(value(file(&path)).await, b"\0\xff\n");
    assert_eq!(value(command(&["printf", "a\\nb\\n"])).await, b"a\nb\n");
    let path_variable = std::env::var("PATH").unwrap();
    assert_eq!(value(SecretSource::FromEnv(name("PATH"))).await, path_variable.as_bytes());
}

#[tokio::test]
async fn errors_of_sources_do_not_contain_the_value() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let big = directory.path().join("big");
    std::fs::write(&big, vec![b'x'; LONGEST]).unwrap();
    resolve(&file(&big)).await.unwrap();
    std::fs::write(&big, vec![b'x'; LONGEST + 1]).unwrap();
    for (source, part) in [
        (SecretSource::FromEnv(name("NIXBOX_NOT_SET")), "NIXBOX_NOT_SET"),
        (file(&directory.path().join("none")), "none"),
        (file(directory.path()), "cannot read"),
        (file(&fifo), "fifo"),
        (file(&big), "longer"),
        (command(&[""]), "cannot run"),
        (command(&["/no/such/program", "hunter2"]), "/no/such/program"),
        (command(&["sh", "-c", "echo hunter2; exit 3"]), "exit status: 3"),
        (command(&["sh", "-c", "yes hunter2"]), "longer"),
    ] {
        let told = format!("{source:?}");
        let error = resolve(&source).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        for text in [told, error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

/// The clock of the runtime passes at once while everything waits.
#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_answer_is_counted_down_and_given_up() {
    let told = Mutex::new(Vec::new());
    let waits = |why: &str| told.lock().unwrap().push(why.to_owned());
    let pending = PendingSources::default();
    let source = command(&["sleep", "600"]);
    let outcome = pending.report_while(&waits, pending.resolve(&source)).await;
    assert!(matches!(outcome, Err(SourceError::Slow { .. })), "{outcome:?}");
    let told = told.into_inner().unwrap();
    assert_eq!(told.len(), 12, "{told:?}");
    assert_eq!(told[0], "waiting for the credentials from \"sleep\" (for 117 s at most)");
    assert_eq!(told[11], "waiting for the credentials from \"sleep\" (for 7 s at most)");
    assert_eq!(pending.describe(), "");
}
