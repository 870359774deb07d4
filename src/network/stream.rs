//! Messages on direct streams: four bytes of length, big-endian, then the canonical bytes.
//!
//! What arrives costs memory only within two budgets: one of its connection, so that a single peer
//! cannot use up everything, and one of the node. A stream that finds no room waits, and its
//! timeout ends it. The places in both budgets travel with the request until it is answered.
//!
//! Encoding and decoding happen in the connection's own task, not in the swarm's.
//!
//! libp2p reports no request that could not be read, so a breach of the protocol is read as a value:
//! [`Breach`], which names the peer that must be cut off.

use std::io;
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codec;
use crate::network::protocol::{MAX_LARGE_BYTES, MAX_SMALL_BYTES, PeerRequest, PeerResponse};

/// Budgets are counted in units of this many bytes.
const UNIT_BYTES: usize = 1024;

/// Bytes of unanswered requests of one connection: two of the largest.
const CONNECTION_BYTES: usize = 2 * MAX_LARGE_BYTES;

/// The two protocols of direct streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Large requests, short answers.
    Bundle,
    /// Short requests, large answers.
    Fetch,
}

impl Lane {
    /// The lane that a request takes.
    pub(super) const fn of(request: &PeerRequest) -> Self {
        match request {
            PeerRequest::Bundle(_) | PeerRequest::Forward(_) => Self::Bundle,
            PeerRequest::FetchRequests(_)
            | PeerRequest::FetchBatches(_)
            | PeerRequest::FetchView(_)
            | PeerRequest::FetchBlocks { .. } => Self::Fetch,
        }
    }

    const fn max_request_bytes(self) -> usize {
        match self {
            Self::Bundle => MAX_LARGE_BYTES,
            Self::Fetch => MAX_SMALL_BYTES,
        }
    }

    const fn max_response_bytes(self) -> usize {
        match self {
            Self::Bundle => MAX_SMALL_BYTES,
            Self::Fetch => MAX_LARGE_BYTES,
        }
    }
}

/// A request with the places that it takes in our budgets; one that we send takes none.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) request: PeerRequest,
    pub(super) places: Vec<OwnedSemaphorePermit>,
}

/// A peer sent what is no request of this protocol.
#[derive(Debug)]
pub(super) struct Breach(pub(super) String);

/// Reads and writes the messages of one lane.
#[derive(Debug)]
pub(super) struct StreamCodec {
    lane: Lane,
    node_budget: Arc<Semaphore>,
    /// `None` in the one that the behaviour keeps as a pattern.
    connection_budget: Option<Arc<Semaphore>>,
}

impl StreamCodec {
    /// The pattern from which the codecs of connections are cloned.
    pub(super) fn pattern(lane: Lane, node_budget: Arc<Semaphore>) -> Self {
        Self { lane, node_budget, connection_budget: None }
    }

    /// A node's budget of `bytes`, at least enough for one message.
    pub(super) fn budget(bytes: usize) -> Arc<Semaphore> {
        let bytes = bytes.clamp(MAX_LARGE_BYTES, Semaphore::MAX_PERMITS);
        Arc::new(Semaphore::new(bytes.div_ceil(UNIT_BYTES)))
    }

    async fn reserve(&self, len: usize) -> io::Result<Vec<OwnedSemaphorePermit>> {
        let units = u32::try_from(len.div_ceil(UNIT_BYTES)).map_err(io::Error::other)?;
        let mut places = Vec::with_capacity(2);
        for budget in self.connection_budget.iter().chain([&self.node_budget]) {
            let place = Arc::clone(budget).acquire_many_owned(units).await;
            places.push(place.map_err(io::Error::other)?);
        }
        Ok(places)
    }

    async fn read_carried(&self, io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Carried> {
        let len = read_len(io, self.lane.max_request_bytes()).await?;
        let places = self.reserve(len).await?;
        let bytes = read_body(io, len).await?;
        let request = PeerRequest::decode(&bytes).map_err(garbage)?;
        if Lane::of(&request) != self.lane || !request.is_within_limits() {
            return Err(garbage("not a request of this protocol"));
        }
        Ok(Carried { request, places })
    }
}

impl Clone for StreamCodec {
    /// The behaviour clones its pattern once for each connection, which then clones its own codec
    /// for each stream: so the first clone opens a connection's budget, and further ones share it.
    fn clone(&self) -> Self {
        let connection_budget = match &self.connection_budget {
            Some(budget) => Arc::clone(budget),
            None => Self::budget(CONNECTION_BYTES),
        };
        Self {
            lane: self.lane,
            node_budget: Arc::clone(&self.node_budget),
            connection_budget: Some(connection_budget),
        }
    }
}

// The trait's methods return `impl Future + Send`; `async fn` in the implementation is that.
impl Codec for StreamCodec {
    type Protocol = StreamProtocol;
    type Request = Result<Carried, Breach>;
    type Response = PeerResponse;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Result<Carried, Breach>>
    where
        T: AsyncRead + Unpin + Send,
    {
        match self.read_carried(io).await {
            Ok(carried) => Ok(Ok(carried)),
            Err(error) if is_garbage(&error) => Ok(Err(Breach(error.to_string()))),
            Err(error) => Err(error),
        }
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<PeerResponse>
    where
        T: AsyncRead + Unpin + Send,
    {
        // Not in the budgets: we asked for it, and ask one peer only a few things at a time.
        let len = read_len(io, self.lane.max_response_bytes()).await?;
        let bytes = read_body(io, len).await?;
        PeerResponse::decode(&bytes).map_err(garbage)
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        carried: Result<Carried, Breach>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let carried = carried.map_err(|breach| io::Error::other(breach.0))?;
        let bytes = codec::encode(&carried.request);
        write(io, &bytes, self.lane.max_request_bytes()).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: PeerResponse,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let bytes = codec::encode(&response);
        write(io, &bytes, self.lane.max_response_bytes()).await
    }
}

/// Whether an error of a stream is a breach of the protocol, not of the connection.
pub(super) fn is_garbage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// Whether an error is our own message being too long.
pub(super) fn is_too_long(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

fn garbage(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

async fn read_len(io: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<usize> {
    let mut len = [0; 4];
    io.read_exact(&mut len).await?;
    let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
    if len > limit { Err(garbage("longer than allowed")) } else { Ok(len) }
}

async fn read_body(io: &mut (impl AsyncRead + Unpin), len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    io.read_exact(&mut bytes).await?;
    // The sender closes its side: whatever follows is a breach as well.
    match io.read(&mut [0]).await? {
        0 => Ok(bytes),
        _ => Err(garbage("bytes after the message")),
    }
}

async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8], limit: usize) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= limit);
    let Some(len) = len else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is longer than allowed"));
    };
    io.write_all(&len.to_be_bytes()).await?;
    io.write_all(bytes).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::io::Cursor;
    use futures::{FutureExt, poll};

    use super::*;
    use crate::types::{Hash, Height};

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test");

    fn codec(lane: Lane) -> StreamCodec {
        StreamCodec::pattern(lane, StreamCodec::budget(0)).clone()
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
    }

    /// All bytes are there, so nothing ever waits.
    fn read(lane: Lane, bytes: &[u8]) -> io::Result<Carried> {
        codec(lane).read_carried(&mut Cursor::new(bytes)).now_or_never().unwrap()
    }

    fn refused_as_garbage(lane: Lane, bytes: &[u8]) -> bool {
        read(lane, bytes).is_err_and(|error| is_garbage(&error))
    }

    #[test]
    fn a_request_that_was_written_is_read() {
        let request = PeerRequest::FetchBlocks { from: Height(7), max: 3 };
        let mut bytes = Vec::new();
        let carried = Ok(Carried { request: request.clone(), places: Vec::new() });
        codec(Lane::Fetch).write_request(&PROTOCOL, &mut bytes, carried).now_or_never().unwrap().unwrap();
        assert_eq!(read(Lane::Fetch, &bytes).unwrap().request, request);
        assert!(refused_as_garbage(Lane::Bundle, &bytes), "on the wrong lane");
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read_or_allocated() {
        assert!(refused_as_garbage(Lane::Bundle, &u32::MAX.to_be_bytes()));
        assert!(refused_as_garbage(Lane::Fetch, &u32::try_from(MAX_SMALL_BYTES + 1).unwrap().to_be_bytes()));
    }

    #[test]
    fn garbage_surplus_and_foolish_requests_are_refused() {
        let good = codec::encode(&PeerRequest::FetchRequests(vec![Hash([1; 32])]));
        assert!(refused_as_garbage(Lane::Fetch, &framed(&[0xff; 64])));
        assert!(refused_as_garbage(Lane::Fetch, &framed(&[])));
        assert!(refused_as_garbage(Lane::Fetch, &[framed(&good).as_slice(), &[0]].concat()));
        for foolish in [
            PeerRequest::FetchRequests(Vec::new()),
            PeerRequest::FetchRequests(vec![Hash([1; 32]); 1025]),
            PeerRequest::FetchBlocks { from: Height(1), max: 0 },
            PeerRequest::FetchBlocks { from: Height(1), max: u32::MAX },
        ] {
            assert!(refused_as_garbage(Lane::Fetch, &framed(&codec::encode(&foolish))));
        }
    }

    #[test]
    fn a_stream_that_ends_early_is_an_error_but_no_breach() {
        let good = framed(&codec::encode(&PeerRequest::FetchRequests(vec![Hash([1; 32])])));
        for len in 0..good.len() {
            assert!(read(Lane::Fetch, &good[..len]).is_err_and(|error| !is_garbage(&error)), "{len} bytes");
        }
    }

    #[test]
    fn an_answer_that_is_too_long_is_not_sent() {
        let response = PeerResponse::Requests(Vec::new());
        let mut bytes = Vec::new();
        let long = write(&mut bytes, &codec::encode(&response), 3).now_or_never().unwrap();
        assert!(long.is_err_and(|error| is_too_long(&error)));
        assert!(bytes.is_empty());
    }

    #[tokio::test]
    async fn requests_beyond_a_budget_wait_until_an_earlier_one_is_answered() {
        let pattern = StreamCodec::pattern(Lane::Bundle, StreamCodec::budget(3 * MAX_LARGE_BYTES));
        let (one, other) = (pattern.clone(), pattern.clone());
        let first = one.clone().reserve(MAX_LARGE_BYTES).await.unwrap();
        let _second = one.reserve(MAX_LARGE_BYTES).await.unwrap();
        let mut third = Box::pin(one.reserve(MAX_LARGE_BYTES));
        assert!(matches!(poll!(&mut third), Poll::Pending), "the connection's budget is used up");
        let _fourth = other.reserve(MAX_LARGE_BYTES).await.unwrap();
        let mut fifth = Box::pin(other.reserve(MAX_LARGE_BYTES));
        assert!(matches!(poll!(&mut fifth), Poll::Pending), "the node's budget is used up");
        drop(first);
        assert!(matches!(poll!(&mut third), Poll::Pending), "the other connection waited longer");
        assert!(matches!(poll!(&mut fifth), Poll::Ready(Ok(_))));
    }
}
