//! The client for Cloud Hypervisor's HTTP API on its Unix socket: each call that nixbox makes is a method, with a time
//! limit of its own.
//!
//! Every call opens a new connection. A kept connection would fail once another VMM listens on the same path. Answers
//! are limited to 4 MiB. When a call is refused, the body of the answer is a JSON array of strings, the error chain
//! from the outside in (all versions from v51 on); it becomes part of the error message. Without a VM, `vm.info` and
//! `vm.boot` are refused with status 500 before v53 and with status 404 from v53 on, so nixbox checks the words of the
//! chain and not the status ([`ApiError::is_missing_vm`]).

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use hyperlocal::UnixConnector;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{Instrument as _, debug_span, field};

use super::config::{FsConfig, VmConfig};
use crate::host::socket::SocketPath;

/// The longest answer that is read, in bytes. `vm.info` of a VM that nixbox makes has about 3 KiB.
const BODY_LIMIT: usize = 4 << 20;

/// The limit for calls that take almost no time by themselves. The VMM has one thread for its API, so such a call may
/// have to wait for the call before it.
const SHORT: Duration = Duration::from_secs(10);
/// The limit for calls that change devices or wait for vCPUs.
const MEDIUM: Duration = Duration::from_secs(60);
/// The limit for calls that read or write all RAM, if the VMM allocated the RAM itself.
const LONG: Duration = Duration::from_secs(30 * 60);

/// Why a call failed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request was not sent, or not answered in full. The VMM may have acted on the request.
    #[error("{call} got no answer on {socket}")]
    Connection { call: &'static str, socket: SocketPath, source: Box<dyn std::error::Error + Send + Sync> },
    /// The VMM may have acted on the request, or may still be acting on it.
    #[error("{call} was not answered within {limit:?}")]
    TimedOut { call: &'static str, limit: Duration },
    /// The VMM answered with an error status; `chain` is its error chain, outermost first.
    #[error("{call} was refused with {status}: {}", chain.join(": "))]
    Refused { call: &'static str, status: u16, chain: Vec<String> },
    #[error("the answer to {call} has more than {BODY_LIMIT} bytes")]
    TooLong { call: &'static str },
    #[error("the answer to {call} cannot be understood")]
    Unreadable { call: &'static str, source: serde_json::Error },
    #[error("the request {call} cannot be formed")]
    Request { call: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

impl ApiError {
    /// Whether this error may come from a VMM that is ending: a VMM closes its sockets a little before its process
    /// exits.
    #[must_use]
    pub fn is_vmm_ending(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Refused { chain, .. } => {
                chain.iter().any(|message| ENDING_WORDS.iter().any(|words| message.contains(words)))
            }
            _ => false,
        }
    }

    /// Whether the VMM answers that it has no VM: status 404 from v53 on, 500 before, with the same words.
    #[must_use]
    pub fn is_missing_vm(&self) -> bool {
        matches!(self, Self::Refused { chain, .. } if chain.last().is_some_and(|last| last == "VM is not created"))
    }
}

/// Texts in the answer of a VMM's API thread when the thread that does the work has ended and the process is about to
/// exit, as in "Error from API: API request send error: sending on a closed channel" (v53.0, `ApiError`).
const ENDING_WORDS: [&str; 2] = ["API request send error", "API response receive error"];

/// The answer to `vmm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmmPing {
    /// The version as `git describe` gave it at build time.
    pub build_version: String,
    /// The process id of the VMM.
    pub pid: u32,
}

/// The state of a VM, as the VMM calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ApiVmState {
    /// Configured, never booted.
    Created,
    /// The vCPUs run.
    Running,
    /// Shut down. The VMM still has the configuration.
    Shutdown,
    /// Paused by `vm.pause`, or restored and not resumed.
    Paused,
    /// Stopped at a break point of a debugger.
    BreakPoint,
}

/// The part of the answer to `vm.info` that nixbox reads.
#[derive(Debug, Clone, Deserialize)]
pub struct VmInfo {
    /// The VM's state.
    pub state: ApiVmState,
    /// The VM's configuration.
    pub config: VmInfoConfig,
    /// The devices by id, once the VM has booted. A device that is being removed is listed until the guest has released
    /// it.
    #[serde(default)]
    pub device_tree: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// The part of a VM's configuration that nixbox reads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmInfoConfig {
    /// The virtio-fs devices.
    #[serde(default)]
    pub fs: Option<Vec<VmInfoShare>>,
}

/// A share in `vm.info`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmInfoShare {
    /// The device id. nixbox gives every share an id.
    #[serde(default)]
    pub id: Option<String>,
}

#[derive(Serialize)]
struct Destination<'a> {
    destination_url: &'a str,
}

#[derive(Serialize)]
struct RestoreSource<'a> {
    source_url: &'a str,
}

#[derive(Serialize)]
struct RemoveDevice<'a> {
    id: &'a str,
}

/// The API of the VMM that listens on one socket.
#[derive(Debug, Clone)]
pub struct ApiClient {
    socket: SocketPath,
    http: HttpClient<UnixConnector, Full<Bytes>>,
}

impl ApiClient {
    /// Creates a client for the VMM on `socket`. The client connects only when a call is made.
    #[must_use]
    pub fn new(socket: SocketPath) -> Self {
        let mut builder = HttpClient::builder(TokioExecutor::new());
        let http = builder
            .pool_max_idle_per_host(0)
            .retry_canceled_requests(false)
            .set_host(false)
            .build(UnixConnector);
        Self { socket, http }
    }

    /// `vmm.ping`: version and process id.
    ///
    /// # Errors
    /// [`ApiError`], as for every call here.
    pub async fn ping(&self) -> Result<VmmPing, ApiError> {
        self.get("vmm.ping").await
    }

    /// `vm.info`. The VMM refuses it if it has no VM: see [`ApiError::is_missing_vm`].
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn info(&self) -> Result<VmInfo, ApiError> {
        self.get("vm.info").await
    }

    /// `vm.create`. In all versions this call opens the serial file, and `vm.boot` opens everything else.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn create(&self, config: &VmConfig) -> Result<(), ApiError> {
        self.put("vm.create", SHORT, Some(config)).await
    }

    /// `vm.boot`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn boot(&self) -> Result<(), ApiError> {
        self.put("vm.boot", MEDIUM, NO_BODY).await
    }

    /// `vm.pause`. Refused unless the VM runs.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.put("vm.pause", MEDIUM, NO_BODY).await
    }

    /// `vm.resume`. Refused unless the VM is paused.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.put("vm.resume", MEDIUM, NO_BODY).await
    }

    /// `vm.snapshot` into an existing directory without files of an earlier snapshot. The call returns when the VMM has
    /// written all files. The VMM does not sync them.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn snapshot(&self, directory: &str) -> Result<(), ApiError> {
        let destination_url = &format!("file://{directory}");
        self.put("vm.snapshot", LONG, Some(&Destination { destination_url })).await
    }

    /// `vm.restore`. The VM is paused afterwards. If the VMM allocates the RAM itself, it has read all RAM by then. A
    /// failed restore leaves no VM.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn restore(&self, directory: &str) -> Result<(), ApiError> {
        let source_url = &format!("file://{directory}");
        self.put("vm.restore", LONG, Some(&RestoreSource { source_url })).await
    }

    /// `vm.power-button`. The guest decides how to react.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn power_button(&self) -> Result<(), ApiError> {
        self.put("vm.power-button", SHORT, NO_BODY).await
    }

    /// `vm.shutdown`: stops the VM as if its power was cut. The VMM keeps the configuration.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn shutdown(&self) -> Result<(), ApiError> {
        self.put("vm.shutdown", MEDIUM, NO_BODY).await
    }

    /// `vm.delete`: stops the VM if it runs, and removes its configuration from the VMM.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn delete(&self) -> Result<(), ApiError> {
        self.put("vm.delete", MEDIUM, NO_BODY).await
    }

    /// `vmm.shutdown`: ends the VMM together with its VM.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn shutdown_vmm(&self) -> Result<(), ApiError> {
        self.put("vmm.shutdown", MEDIUM, NO_BODY).await
    }

    /// `vm.add-fs`. The daemon of the share must be listening.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn add_fs(&self, share: &FsConfig) -> Result<(), ApiError> {
        self.put("vm.add-fs", MEDIUM, Some(share)).await
    }

    /// `vm.remove-device`. The call returns when the guest has been asked to release the device.
    /// [`VmInfo::device_tree`] lists the device until the guest has released it.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn remove_device(&self, id: &str) -> Result<(), ApiError> {
        self.put("vm.remove-device", MEDIUM, Some(&RemoveDevice { id })).await
    }

    async fn get<T: DeserializeOwned>(&self, call: &'static str) -> Result<T, ApiError> {
        let body = self.send(call, SHORT, Method::GET, Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(|source| ApiError::Unreadable { call, source })
    }

    /// Makes a PUT call. The body of the answer is ignored: it is empty, or nixbox does not need it (`vm.add-fs`
    /// answers the PCI address).
    async fn put<B: Serialize>(
        &self,
        call: &'static str,
        limit: Duration,
        body: Option<&B>,
    ) -> Result<(), ApiError> {
        let bytes = match body {
            None => Bytes::new(),
            Some(body) => serde_json::to_vec(body)
                .map_err(|source| ApiError::Request { call, source: source.into() })?
                .into(),
        };
        self.send(call, limit, Method::PUT, bytes).await.map(drop)
    }

    async fn send(
        &self,
        call: &'static str,
        limit: Duration,
        method: Method,
        body: Bytes,
    ) -> Result<Bytes, ApiError> {
        let uri: hyper::Uri = hyperlocal::Uri::new(self.socket.as_path(), &format!("/api/v1/{call}")).into();
        let mut request = Request::builder().method(method).uri(uri).header("Host", "localhost");
        if !body.is_empty() {
            request = request.header("Content-Type", "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|source| ApiError::Request { call, source: source.into() })?;
        let span = debug_span!("request", call, status = field::Empty);
        let (status, body) =
            tokio::time::timeout(limit, self.exchange(call, request).instrument(span.clone()))
                .await
                .map_err(|_elapsed| ApiError::TimedOut { call, limit })??;
        span.record("status", status.as_u16());
        if status.is_success() {
            return Ok(body);
        }
        Err(ApiError::Refused { call, status: status.as_u16(), chain: error_chain(&body) })
    }

    async fn exchange(
        &self,
        call: &'static str,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ApiError::Connection {
            call,
            socket: self.socket.clone(),
            source,
        };
        let answer = self.http.request(request).await.map_err(|error| broken(error.into()))?;
        let status = answer.status();
        match Limited::new(answer.into_body(), BODY_LIMIT).collect().await {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(ApiError::TooLong { call }),
            Err(error) => Err(broken(error)),
        }
    }
}

const NO_BODY: Option<&()> = None;

/// The error chain in the body of an answer, outermost first: a JSON array of strings. A body of any other form is one
/// message. Control characters become spaces; more than 20 messages, or 1000 characters of one, are cut off.
fn error_chain(body: &[u8]) -> Vec<String> {
    let chain = serde_json::from_slice(body)
        .unwrap_or_else(|_not_an_array| vec![String::from_utf8_lossy(body).trim().to_owned()]);
    let readable =
        |text: String| text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect();
    chain.into_iter().take(20).map(readable).collect()
}

#[cfg(test)]
mod tests;
