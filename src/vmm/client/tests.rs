//! Tests with a real Cloud Hypervisor, which needs no KVM for these calls, and with servers that misbehave.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::host::process::{Daemon, DaemonRole, Daemons};
use crate::host::spawn::{self, Invoker, Privileges, Program};
use crate::testing::{Need, have};
use crate::vmm::config::MachineDescription;
use crate::vmm::config::tests::description;
use crate::world::{Generation, WorkspaceId, capability};

fn path(directory: &tempfile::TempDir) -> SocketPath {
    SocketPath::new(directory.path().join("api.sock")).unwrap()
}

/// A real VMM, which is killed when the test ends.
struct RealVmm {
    client: ApiClient,
    daemon: Daemon,
    directory: tempfile::TempDir,
}

impl Drop for RealVmm {
    fn drop(&mut self) {
        self.daemon.signal(rustix::process::Signal::KILL).unwrap();
    }
}

async fn real() -> RealVmm {
    let directory = tempfile::tempdir().unwrap();
    let socket = path(&directory);
    let vmm = spawn::find_program("cloud-hypervisor", "NIXBOX_CLOUD_HYPERVISOR").unwrap();
    let program = Program::new(vmm, Privileges::Invoker(Invoker::detect().unwrap()))
        .argument("--api-socket")
        .argument(format!("path={socket}"));
    let daemons = Daemons::new(directory.path().to_owned(), WorkspaceId([9; 16]));
    let generation = Generation(u64::from(std::process::id()) << 32 | u64::from(rand()));
    let daemon = daemons.spawn(&DaemonRole::vmm(), generation, &program).unwrap();
    let client = ApiClient::new(socket);
    let answer = async {
        while client.ping().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap();
    RealVmm { client, daemon, directory }
}

fn rand() -> u32 {
    let mut bytes = [0; 4];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn chain(error: ApiError) -> Vec<String> {
    match error {
        ApiError::Refused { chain, .. } => chain,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_real_vmm_answers_every_call_of_a_vm_that_cannot_boot() {
    if !have(&[Need::CloudHypervisor, Need::Root]) {
        return;
    }
    let real = real().await;
    let client = &real.client;
    let ping = client.ping().await.unwrap();
    assert_eq!(ping.pid, real.daemon.pid());
    let capability = capability::of(&ping.build_version).unwrap();
    assert!(client.info().await.unwrap_err().is_missing_vm());
    // `vm.create` opens the serial log, and no other file that the configuration names.
    let serial = real.directory.path().join("serial.log").to_str().unwrap().to_owned();
    let machine = MachineDescription { disks: vec!["/nowhere/disk".into()], serial, ..description() };
    let config = VmConfig::new(&machine, capability);
    client.create(&config).await.unwrap();
    let info = client.info().await.unwrap();
    assert_eq!(info.state, ApiVmState::Created);
    assert_eq!(info.config.fs.unwrap()[0].id.as_deref(), Some("share-work"));
    // The message contains the whole error chain, down to the text of the operating system.
    let message = client.boot().await.unwrap_err().to_string();
    assert!(
        message.starts_with("vm.boot was refused with 500: Error from API: The VM could not boot: "),
        "{message}"
    );
    assert!(message.ends_with(": No such file or directory (os error 2)"), "{message}");
    let again = chain(client.create(&config).await.unwrap_err());
    assert_eq!(again, ["Error from API", "The VM could not be created", "VM is already created"]);
    client.delete().await.unwrap();
    assert!(client.info().await.unwrap_err().is_missing_vm());
    client.shutdown_vmm().await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), real.daemon.exited()).await.unwrap().unwrap();
    assert!(matches!(client.ping().await, Err(ApiError::Connection { call: "vmm.ping", .. })));
}

#[tokio::test]
async fn a_real_vmm_without_a_vm_refuses_calls_that_need_one() {
    if !have(&[Need::CloudHypervisor, Need::Root]) {
        return;
    }
    let real = real().await;
    let client = &real.client;
    let share = FsConfig::new("work", "/nowhere/fs.sock");
    let refused = [
        client.boot().await,
        client.pause().await,
        client.resume().await,
        client.snapshot("/nowhere").await,
        client.power_button().await,
        client.shutdown().await,
        client.add_fs(&share).await,
        client.remove_device("share-work").await,
    ];
    for result in refused {
        let chain = chain(result.unwrap_err());
        assert_eq!(chain[0], "Error from API");
        assert!(chain.len() >= 3, "{chain:?}");
    }
    let chain = chain(client.restore("/nowhere").await.unwrap_err());
    assert_eq!(chain[1], "The VM could not be restored");
    assert!(chain.last().unwrap().contains("/nowhere"), "{chain:?}");
    // The VMM still answers.
    client.ping().await.unwrap();
}

/// A server that reads the head of a request on each connection and then does what `behave` says.
fn server<F: Future<Output = io::Result<()>> + Send>(
    behave: impl Fn(UnixStream) -> F + Send + 'static,
) -> (ApiClient, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let socket = path(&directory);
    let listener = UnixListener::bind(socket.as_path()).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            match behave(stream).await {
                // The client closed the connection, as it should with such a server.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
        }
        #[allow(unreachable_code)]
        Ok::<(), io::Error>(())
    });
    (ApiClient::new(socket), directory)
}

fn text(
    answer: &'static str,
) -> impl Fn(UnixStream) -> futures_util::future::BoxFuture<'static, io::Result<()>> + Send {
    move |mut stream| Box::pin(async move { stream.write_all(answer.as_bytes()).await })
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_times_out() {
    let (client, _directory) = server(|stream| async move {
        let _kept_open = stream;
        std::future::pending().await
    });
    assert!(matches!(client.ping().await, Err(ApiError::TimedOut { call: "vmm.ping", limit: SHORT })));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_answer_stops_halfway_times_out() {
    let (client, _directory) = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"build").await?;
        std::future::pending().await
    });
    assert!(matches!(client.ping().await, Err(ApiError::TimedOut { call: "vmm.ping", limit: SHORT })));
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let (client, _directory) = server(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        loop {
            stream.write_all(b"1000\r\n").await?;
            stream.write_all(&[b' '; 0x1000]).await?;
            stream.write_all(b"\r\n").await?;
        }
    });
    assert!(matches!(client.info().await, Err(ApiError::TooLong { call: "vm.info" })));
    let (client, _directory) = server(text("HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n"));
    assert!(matches!(client.boot().await, Err(ApiError::TooLong { .. } | ApiError::Connection { .. })));
}

#[tokio::test]
async fn a_connection_that_is_closed_is_an_error_with_its_cause() {
    for answer in
        ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"build", "HTTP/1.1 20", "220 mail ESMTP\r\n"]
    {
        let (client, _directory) = server(text(answer));
        let error = client.ping().await.unwrap_err();
        assert!(matches!(error, ApiError::Connection { call: "vmm.ping", .. }), "{answer:?}: {error:?}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test]
async fn an_answer_of_another_form_is_an_error() {
    for body in ["", "{", "[]", "{\"pid\":1}", "{\"build_version\":\"v53.0\",\"pid\":-1}", "\u{0}"] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (client, _directory) = server(text(answer.leak()));
        let error = client.ping().await.unwrap_err();
        assert!(matches!(error, ApiError::Unreadable { call: "vmm.ping", .. }), "{body:?}: {error:?}");
    }
}

#[tokio::test]
async fn every_error_body_becomes_a_readable_message() {
    let rows = [
        ("[\"a\",\"b\"]", "vm.boot was refused with 500: a: b"),
        ("plain\ttext\u{1b}[31m", "vm.boot was refused with 500: plain text [31m"),
        ("", "vm.boot was refused with 500: "),
        ("{\"a\":1}", "vm.boot was refused with 500: {\"a\":1}"),
    ];
    for (body, message) in rows {
        let answer = format!("HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (client, _directory) = server(text(answer.leak()));
        assert_eq!(client.boot().await.unwrap_err().to_string(), message);
    }
}

#[tokio::test]
async fn a_client_reaches_the_next_vmm_on_the_same_path() {
    const PONG: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 35\r\n\r\n{\"build_version\":\"v53.0\",\"pid\": 17}\n";
    let directory = tempfile::tempdir().unwrap();
    let client = ApiClient::new(path(&directory));
    for _ in 0..20 {
        let listener = UnixListener::bind(path(&directory).as_path()).unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            assert!(
                String::from_utf8(head).unwrap().to_ascii_lowercase().contains("\r\nhost: localhost\r\n")
            );
            stream.write_all(PONG.as_bytes()).await.unwrap();
            // The connection stays open until the answer has arrived, as a kept-alive connection does.
            stream
        };
        let (_stream, ping) = tokio::join!(answer, client.ping());
        assert_eq!(ping.unwrap().pid, 17);
        std::fs::remove_file(path(&directory).as_path()).unwrap();
    }
}

#[test]
fn the_answer_of_a_vmm_that_is_ending_is_recognised() {
    let refused = |body: &[u8]| ApiError::Refused { call: "vm.info", status: 500, chain: error_chain(body) };
    // v53.0 gave this answer after the reboot of a guest had failed.
    let ending = br#"["Error from API","API request send error","sending on a closed channel"]"#;
    assert!(refused(ending).is_vmm_ending());
    assert!(!refused(br#"["Error from API","VM is not created"]"#).is_vmm_ending());
    let timed_out = ApiError::TimedOut { call: "vm.info", limit: SHORT };
    assert!(!timed_out.is_vmm_ending());
}
