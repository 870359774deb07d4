//! The door in front of rmqtt: how many connections there may be, and how long one may say nothing.
//!
//! ```text
//! client ──▶ door: a place free? the first bytes in time? ──loopback──▶ rmqtt
//! ```
//!
//! rmqtt takes any number of sockets and waits without end for the first bytes of a CONNECT, so a
//! thousand silent connections would use up the process's open files, and with them a node's disk. The
//! door takes a limited number, closes those that are silent or do not begin with a CONNECT of sensible
//! length, and hands the bytes of the others on. It also remembers who is behind each inner connection:
//! one that did not come through the door (another program on this machine) is nobody's, and is refused.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, copy_buf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::BrokerSettings;

/// Connections waiting to be accepted; the operating system refuses more.
const BACKLOG: u32 = 1_024;
/// Open files per connection: the client's socket and both ends of the inner one.
const FILES_PER_CONNECTION: u64 = 3;
/// Open files left to the rest of the process: log, store, peers, HTTP.
const FILES_RESERVED: u64 = 400;
/// The shortest CONNECT there is; rmqtt tells the version from this much.
const FIRST_BYTES: usize = 14;
/// The longest CONNECT taken: a client id, a token of 4 KiB, a user name and a few properties. rmqtt
/// keeps a whole packet before it looks at it, so without this each connection of somebody without
/// any key would be worth as much memory as the largest message.
const MAX_CONNECT_BYTES: usize = 16 * 1024;
/// The first byte of a CONNECT.
const CONNECT: u8 = 0x10;
/// Buffer of each direction of a connection.
const BUFFER: usize = 16 * 1024;
/// How long rmqtt may take to end its side after the client has ended its own.
const GRACE: Duration = Duration::from_secs(5);
/// Rest when the operating system has no file for another connection.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Who is behind each inner connection.
#[derive(Debug, Default)]
pub(super) struct Guests(Mutex<HashMap<SocketAddr, SocketAddr>>);

impl Guests {
    /// Where the client behind an inner connection connects from.
    pub(super) fn remote(&self, inner: SocketAddr) -> Option<SocketAddr> {
        self.locked().get(&inner).copied()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<SocketAddr, SocketAddr>> {
        // An insertion or removal is whole or has not happened.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a guest when its connection ends.
struct Visit {
    guests: Arc<Guests>,
    inner: SocketAddr,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.guests.locked().remove(&self.inner);
    }
}

/// The door.
pub(super) struct Door {
    inner: SocketAddr,
    guests: Arc<Guests>,
    /// Places for connections.
    places: Arc<Semaphore>,
    /// Places for connections that have not sent their first bytes, so that the silent cannot take all.
    lobby: Arc<Semaphore>,
    patience: Duration,
    /// Places there are and places wanted, if the limit of open files has no room for those.
    cramped: Option<(u64, u64)>,
}

impl Door {
    /// A door to the broker at `inner`, as wide as the settings and the limit of open files allow.
    pub(super) fn new(settings: &BrokerSettings, inner: SocketAddr, guests: Arc<Guests>) -> Self {
        let wanted = u64::from(settings.max_connections);
        let places = wanted.min(affordable_connections());
        Self {
            inner,
            guests,
            places: semaphore(places),
            lobby: semaphore(places.div_ceil(4).min(256)),
            patience: settings.handshake_timeout,
            cramped: (places < wanted).then_some((places, wanted)),
        }
    }

    /// Takes connections, for ever.
    pub(super) async fn run(self, listener: TcpListener) {
        let mut untold = self.cramped;
        let door = Arc::new(self);
        loop {
            let (client, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot take an mqtt connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let place = Arc::clone(&door.places).try_acquire_owned();
            if place.is_err()
                && let Some((places, wanted)) = untold.take()
            {
                tracing::warn!(
                    places,
                    wanted,
                    "mqtt connections are refused that the setting allows: raise the limit of open files (ulimit -n)"
                );
            }
            let seat = Arc::clone(&door.lobby).try_acquire_owned();
            let (Ok(place), Ok(seat)) = (place, seat) else {
                tracing::debug!(%remote, "mqtt connection closed: no place free");
                continue;
            };
            let door = Arc::clone(&door);
            tokio::spawn(async move {
                if let Err(error) = door.serve(client, remote, seat).await {
                    tracing::debug!(%remote, %error, "mqtt connection ended");
                }
                drop(place);
            });
        }
    }

    async fn serve(
        &self,
        mut client: TcpStream,
        remote: SocketAddr,
        seat: OwnedSemaphorePermit,
    ) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        let first = tokio::time::timeout(self.patience, first_bytes(&mut client)).await??;
        drop(seat);
        let mut inner = TcpStream::connect(self.inner).await?;
        inner.set_nodelay(true)?;
        let visit = Visit { guests: Arc::clone(&self.guests), inner: inner.local_addr()? };
        self.guests.locked().insert(visit.inner, remote);
        inner.write_all(&first).await?;
        relay(client, inner).await;
        Ok(())
    }
}

async fn first_bytes(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut first = Vec::with_capacity(BUFFER);
    while first.len() < FIRST_BYTES {
        if client.read_buf(&mut first).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    if may_be_connect(&first) { Ok(first) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Whether this is the beginning of a CONNECT that is not too long.
fn may_be_connect(first: &[u8]) -> bool {
    let Some((CONNECT, rest)) = first.split_first().map(|(kind, rest)| (*kind, rest)) else { return false };
    let mut remaining = 0;
    for (byte, shift) in rest.iter().zip([0, 7, 14, 21]) {
        remaining |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return remaining <= MAX_CONNECT_BYTES;
        }
    }
    false
}

/// Hands bytes on both ways. When the broker hangs up, so does the door.
async fn relay(mut client: TcpStream, mut inner: TcpStream) {
    let (client_in, mut client_out) = client.split();
    let (inner_in, mut inner_out) = inner.split();
    let mut client_in = BufReader::with_capacity(BUFFER, client_in);
    let mut inner_in = BufReader::with_capacity(BUFFER, inner_in);
    // How a direction ended makes no difference: the other one is told by the end of its stream.
    let up = async {
        let _ = copy_buf(&mut client_in, &mut inner_out).await;
        let _ = inner_out.shutdown().await;
    };
    let down = async {
        let _ = copy_buf(&mut inner_in, &mut client_out).await;
        let _ = client_out.shutdown().await;
    };
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => {}
        () = up => {
            let _ = tokio::time::timeout(GRACE, down).await;
        }
    }
}

/// Binds the door's own address.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted node must not wait for the old connections' TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Where rmqtt listens: on this machine only, on a free port.
pub(super) fn inner_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// How many connections the limit of open files has room for, after raising it as far as it goes.
fn affordable_connections() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Without the right to raise it, the present limit counts.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let files = if raised { maximum } else { current }.unwrap_or(u64::MAX);
    (files.saturating_sub(FILES_RESERVED) / FILES_PER_CONNECTION).max(1)
}

fn semaphore(permits: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(permits).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)))
}
