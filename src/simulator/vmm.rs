//! The process of the simulated VMM: it serves the API on its socket until a call, a signal or its guest ends it.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::api::SimulatedVmm;
use super::guest::PowerRequest;
use super::refusal::ApiRefusal;
use super::vm::VmmContext;
use crate::world::capability::Capability;

/// The longest body of a request, in bytes.
const BODY_LIMIT: usize = 1 << 20;
/// How often to look for share daemons that have gone.
const DAEMON_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Serves the API on `socket`, as `version` does, until a call, a signal or the guest ends the VMM. Reports to the file `events`
/// that the guest was rebooted, and that the VMM ends.
///
/// # Errors
/// If the socket cannot be bound, or another VMM uses it, or the file cannot be written.
pub fn serve(socket: &Path, events: Option<&Path>, version: &'static Capability) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let events = EventLog(events.map(File::create).transpose()?);
    let done = runtime.block_on(run(socket, events, version));
    // Threads that wait for programs of the guest are not waited for.
    runtime.shutdown_background();
    done
}

/// The file of the events, if there is one.
struct EventLog(Option<File>);

impl EventLog {
    /// Writes an event in the form of Cloud Hypervisor.
    fn report(&mut self, source: &str, event: &str) -> io::Result<()> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        let event = serde_json::json!({"source": source, "event": event, "properties": null});
        writeln!(file, "{}\n", serde_json::to_string_pretty(&event)?)
    }
}

async fn run(socket: &Path, mut events: EventLog, version: &'static Capability) -> io::Result<()> {
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let _lock = if version.cleans_up_stale_socket { Some(lock(socket)?) } else { None };
    let listener = UnixListener::bind(socket).or_else(|error| {
        if version.removes_socket_it_cannot_bind {
            std::fs::remove_file(socket)?
        }
        Err(error)
    })?;
    rustix::fs::chmod(socket, rustix::fs::Mode::RWXU)?;
    let directory = socket.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    let (power, mut asked) = unbounded_channel();
    let context = VmmContext { runtime: directory, version, power: power.clone() };
    // Every call waits for the one before it, as in Cloud Hypervisor, which has one thread for its API.
    let vmm = Arc::new(Mutex::new(SimulatedVmm::new(context)));
    let mut daemon_check = tokio::time::interval(DAEMON_CHECK_INTERVAL);
    daemon_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let (vmm, power) = (Arc::clone(&vmm), power.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&vmm), power.clone(), request));
                    // The client has gone away, and there is nobody to tell.
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
            asked = asked.recv() => match asked {
                Some(PowerRequest::Reboot) => {
                    // If the guest cannot boot again, there is no VM from then on, and calls say so.
                    events.report("vm", "rebooting")?;
                    if vmm.lock().await.reboot().is_ok() {
                        events.report("vm", "rebooted")?;
                    }
                }
                Some(PowerRequest::Off) | None => break,
            },
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            _ = daemon_check.tick() => vmm.lock().await.hang_shares_of_lost_daemons()?,
        }
    }
    // Dropping the VM ends what runs in its guest.
    drop(std::mem::replace(
        &mut *vmm.lock().await,
        SimulatedVmm::new(VmmContext { runtime: PathBuf::new(), version, power }),
    ));
    events.report("vmm", "shutdown")?;
    std::fs::remove_file(socket)
}

/// Locks the file beside the socket, as versions that clean up a stale socket do: while another VMM has the lock, the
/// socket is in use; else it is stale and is removed.
fn lock(socket: &Path) -> io::Result<File> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    file.try_lock().map_err(|_| {
        let text = format!("API socket {socket:?} is already in use by another running instance");
        io::Error::new(io::ErrorKind::AddrInUse, text)
    })?;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(file),
    }
}

async fn answer(
    vmm: Arc<Mutex<SimulatedVmm>>,
    power: UnboundedSender<PowerRequest>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().as_str().to_owned(), request.uri().path().to_owned());
    let body = match Limited::new(request.into_body(), BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(response(400, ApiRefusal::new(400, &["Bad Request"]).body())),
    };
    if (method.as_str(), path.as_str()) == ("PUT", "/api/v1/vmm.shutdown") {
        // Without a receiver the VMM is ending already.
        power.send(PowerRequest::Off).ok();
        return Ok(response(200, String::new()));
    }
    Ok(match vmm.lock().await.call(&method, &path, &body) {
        Ok((status, body)) => response(status, body),
        Err(refusal) => response(refusal.status, refusal.body()),
    })
}

fn response(status: u16, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    if let Ok(status) = hyper::StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    response
}
