//! Cloud Hypervisor's HTTP API on its Unix socket: every call that nixbox makes, typed, each with its own time limit.
//!
//! One connection per call: a kept one fails after the VMM on the same path was replaced. What the VMM answers is
//! limited in size, and its error chain is part of the error message here.

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

use super::config::{FsConfig, VmConfig};
use crate::host::socket::SocketPath;

/// An answer is at most this long in bytes. `vm.info` of a VM of ours has some 3 KiB.
const BODY_LIMIT: usize = 4 << 20;

/// The VMM has one thread for its API: even a trivial answer waits for the call before it.
const SHORT: Duration = Duration::from_secs(10);
/// Calls that change devices or wait for vCPUs.
const MEDIUM: Duration = Duration::from_secs(60);
/// Calls that may read or write the whole of the RAM, where that is the VMM's own.
const LONG: Duration = Duration::from_secs(30 * 60);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It was not sent, or not answered in full. Whether the VMM acted on it is not known.
    #[error("{call} got no answer on {socket}")]
    Connection {
        /// The call.
        call: &'static str,
        /// The socket.
        socket: SocketPath,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The VMM did not answer in time. Whether it acts on it is not known.
    #[error("{call} was not answered within {limit:?}")]
    TimedOut {
        /// The call.
        call: &'static str,
        /// Its limit.
        limit: Duration,
    },
    /// The VMM says no.
    #[error("{call} was refused with {status}: {}", chain.join(": "))]
    Refused {
        /// The call.
        call: &'static str,
        /// The HTTP status.
        status: u16,
        /// The VMM's own words, outermost first.
        chain: Vec<String>,
    },
    /// The answer is longer than any that nixbox expects.
    #[error("the answer to {call} has more than {BODY_LIMIT} bytes")]
    TooLong {
        /// The call.
        call: &'static str,
    },
    /// The answer is not what the API describes.
    #[error("the answer to {call} cannot be understood")]
    Unreadable {
        /// The call.
        call: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The request cannot be formed.
    #[error("the request {call} cannot be formed")]
    Request {
        /// The call.
        call: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ApiError {
    /// Whether this is how a VMM speaks that is ending: it closes its sockets a little before it is dead.
    #[must_use]
    pub fn is_vmm_ending(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Refused { chain, .. } => {
                chain.iter().any(|said| ENDING_WORDS.iter().any(|words| said.contains(words)))
            }
            _ => false,
        }
    }

    /// Whether the VMM says that it has no VM: 404 from v53 on, 500 before, with the same words.
    #[must_use]
    pub fn is_missing_vm(&self) -> bool {
        matches!(self, Self::Refused { chain, .. } if chain.last().is_some_and(|last| last == "VM is not created"))
    }
}

/// What the VMM's thread for the API says when the thread that does the work has ended (v53.0, `ApiError`): it is about to
/// end as a whole. "Error from API: API request send error: sending on a closed channel".
const ENDING_WORDS: [&str; 2] = ["API request send error", "API response receive error"];

/// The answer to `vmm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmmPing {
    /// The version, with what git said when it was built.
    pub build_version: String,
    /// Its process.
    pub pid: u32,
}

/// The state of a VM, as the VMM calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ApiVmState {
    /// Configured, never booted.
    Created,
    /// It runs.
    Running,
    /// It has been shut down.
    Shutdown,
    /// It is paused.
    Paused,
    /// It stands at a break point of a debugger.
    BreakPoint,
}

/// What nixbox reads of the answer to `vm.info`.
#[derive(Debug, Clone, Deserialize)]
pub struct VmInfo {
    /// The VM's state.
    pub state: ApiVmState,
    /// Its configuration.
    pub config: VmInfoConfig,
    /// Its devices by id, once booted. One that was asked to go is here until the guest has let go of it.
    #[serde(default)]
    pub device_tree: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// What nixbox reads of a VM's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmInfoConfig {
    /// Its shares.
    #[serde(default)]
    pub fs: Option<Vec<VmInfoShare>>,
}

/// A share in `vm.info`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmInfoShare {
    /// Its id; one without was not attached by nixbox.
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

/// Speaks to the VMM on one socket.
#[derive(Debug, Clone)]
pub struct ApiClient {
    socket: SocketPath,
    http: HttpClient<UnixConnector, Full<Bytes>>,
}

impl ApiClient {
    /// For the VMM on `socket`. Connects with each call, not before.
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
    /// [`ApiError`], as with every call here.
    pub async fn ping(&self) -> Result<VmmPing, ApiError> {
        self.get("vmm.ping").await
    }

    /// `vm.info`. Without a VM it is refused: see [`ApiError::is_missing_vm`].
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn info(&self) -> Result<VmInfo, ApiError> {
        self.get("vm.info").await
    }

    /// `vm.create`. The VMM looks at little of it before `vm.boot`.
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

    /// `vm.snapshot` into an existing directory without files of an earlier one. Blocks until all is written; nothing
    /// is synced.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn snapshot(&self, directory: &str) -> Result<(), ApiError> {
        let destination_url = &format!("file://{directory}");
        self.put("vm.snapshot", LONG, Some(&Destination { destination_url })).await
    }

    /// `vm.restore`, RAM copied eagerly where it is the VMM's own; the VM is paused then. A failed one leaves no VM.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn restore(&self, directory: &str) -> Result<(), ApiError> {
        let source_url = &format!("file://{directory}");
        self.put("vm.restore", LONG, Some(&RestoreSource { source_url })).await
    }

    /// `vm.power-button`: what becomes of it is the guest's choice.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn power_button(&self) -> Result<(), ApiError> {
        self.put("vm.power-button", SHORT, NO_BODY).await
    }

    /// `vm.shutdown`: stops the VM as if by cutting its power; its configuration stays.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn shutdown(&self) -> Result<(), ApiError> {
        self.put("vm.shutdown", MEDIUM, NO_BODY).await
    }

    /// `vm.delete`: stops the VM if it runs, and forgets its configuration.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn delete(&self) -> Result<(), ApiError> {
        self.put("vm.delete", MEDIUM, NO_BODY).await
    }

    /// `vmm.shutdown`: the VMM ends, and its VM with it.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn shutdown_vmm(&self) -> Result<(), ApiError> {
        self.put("vmm.shutdown", MEDIUM, NO_BODY).await
    }

    /// `vm.add-fs`. The share's daemon must listen.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn add_fs(&self, share: &FsConfig) -> Result<(), ApiError> {
        self.put("vm.add-fs", MEDIUM, Some(share)).await
    }

    /// `vm.remove-device`. Returns when the guest has been asked; [`VmInfo::device_tree`] tells when it has let go.
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

    /// An answer to PUT has no body, or one that nixbox does not need (`vm.add-fs` says where the device is).
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
        let (status, body) = tokio::time::timeout(limit, self.exchange(call, request))
            .await
            .map_err(|_elapsed| ApiError::TimedOut { call, limit })??;
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

/// The error chain in an answer's body, outermost first: a JSON array of strings; anything else is taken as text.
/// Printable, and no longer than a person reads.
fn error_chain(body: &[u8]) -> Vec<String> {
    let chain = serde_json::from_slice(body)
        .unwrap_or_else(|_not_an_array| vec![String::from_utf8_lossy(body).trim().to_owned()]);
    let readable =
        |text: String| text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect();
    chain.into_iter().take(20).map(readable).collect()
}

#[cfg(test)]
mod tests;
