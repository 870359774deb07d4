//! What a replica is told at its start, and the limits that all replicas of a network share.
//!
//! A limit that decides whether a vote is cast is a constant of the protocol: replicas that differ
//! in it could refuse each other's proposals for ever. What only paces one replica is a setting.

use std::time::Duration;

use crate::crypto::SecretKey;
use crate::ledger::{MAX_REQUEST_BYTES, ReplicaSet};
use crate::pbft::certificates::Prepared;
use crate::pbft::message::MAX_ENVELOPE_BYTES;
use crate::types::NetworkId;

/// The most sequence numbers between the low and the high watermark (1999, section 4.2), and how
/// many batches the digests of executed requests are remembered for. Bounds the log of a replica.
pub const WINDOW: u64 = 256;

/// What a VIEW-CHANGE has besides its prepared certificates: at most a certificate of 200 replicas.
const VIEW_CHANGE_OVERHEAD: usize = 16 << 10;

/// The numbers between the watermarks in this set of replicas: [`WINDOW`], or fewer in a set of
/// more than 20, so that a VIEW-CHANGE with a certificate for each of them fits into one message.
pub fn window(replicas: &ReplicaSet) -> u64 {
    let certificate = Prepared::FIXED_BYTES + replicas.quorum() * Prepared::BYTES_PER_SIGNATURE;
    let fitting = (MAX_ENVELOPE_BYTES - VIEW_CHANGE_OVERHEAD) / certificate;
    WINDOW.min(u64::try_from(fitting).unwrap_or(WINDOW)).max(1)
}

/// The most requests that a batch may have: 32 KiB of digests, so that a PRE-PREPARE stays far
/// below what gossipsub carries.
pub const MAX_BATCH_REQUESTS: usize = 1024;

/// The most bytes of requests that a batch may have; one request of the largest size fits.
pub const MAX_BATCH_BYTES: usize = MAX_REQUEST_BYTES;

/// The most batches that are on their way at once: enough to fill a line with 16 full batches in each
/// round trip, and few enough that slow machines do not drown in votes for small ones.
pub const IN_FLIGHT_BATCHES: u32 = 16;

/// How far the timestamp of a fresh proposal may be ahead of a backup's clock.
pub const MAX_CLOCK_AHEAD: Duration = Duration::from_secs(5);

/// The usual values of what an operator may set: those of [`Settings::new`] and of the node's
/// configuration, which has no others.
pub mod defaults {
    use std::time::Duration;

    /// [`super::Settings::batch_max_requests`].
    pub const BATCH_MAX_REQUESTS: u32 = 512;
    /// [`super::Settings::batch_max_bytes`]: one request of the largest size.
    pub const BATCH_MAX_BYTES: u32 = 8 << 20;
    /// [`super::Settings::batch_delay`].
    pub const BATCH_DELAY: Duration = Duration::from_millis(5);
    /// [`super::Settings::pipeline_batches`].
    pub const PIPELINE_BATCHES: u32 = 1;
    /// [`super::Settings::bundle_delay`].
    pub const BUNDLE_DELAY: Duration = Duration::from_millis(30);
    /// [`super::Settings::pool_max_requests`].
    pub const POOL_MAX_REQUESTS: u32 = 8192;
    /// [`super::Settings::pool_max_bytes`].
    pub const POOL_MAX_BYTES: u32 = 64 << 20;
    /// [`super::Settings::inflight_max_bytes`].
    pub const INFLIGHT_MAX_BYTES: u32 = 128 << 20;
    /// [`super::Settings::resend_initial`].
    pub const RESEND_INITIAL: Duration = Duration::from_millis(250);
    /// [`super::Settings::resend_max`].
    pub const RESEND_MAX: Duration = Duration::from_secs(2);
    /// [`super::Settings::request_resend`].
    pub const REQUEST_RESEND: Duration = Duration::from_millis(500);
    /// [`super::Settings::request_resend_max`].
    pub const REQUEST_RESEND_MAX: Duration = Duration::from_secs(8);
    /// [`super::Settings::fetch_interval`].
    pub const FETCH_INTERVAL: Duration = Duration::from_millis(500);
    /// [`super::Settings::request_timeout`].
    pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
    /// [`super::Settings::request_timeout_max`].
    pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(32);
}

/// The settings of one replica.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The ledger.
    pub network: NetworkId,
    /// The replicas; the own key is one of them.
    pub replicas: ReplicaSet,
    /// The key that signs. Ed25519 is deterministic, so the core stays a pure function.
    pub key: SecretKey,
    /// A batch of so many requests is proposed at once; at most [`MAX_BATCH_REQUESTS`].
    pub batch_max_requests: usize,
    /// A batch of so many bytes of requests is proposed at once; at most [`MAX_BATCH_BYTES`].
    pub batch_max_bytes: usize,
    /// How long the oldest request waits for others to share its batch.
    pub batch_delay: Duration,
    /// While so many batches are proposed and not executed, only full ones are proposed.
    pub pipeline_batches: u64,
    /// The most batches proposed and not executed, full ones too, whatever `pipeline_batches` is.
    pub in_flight_batches: u64,
    /// The shortest time between two bundles of this node's requests, which gather meanwhile; the first
    /// one after a pause waits a quarter of it.
    pub bundle_delay: Duration,
    /// Pending requests taken from each admitting node; more are refused, so that none of them
    /// can fill the pool for the others. An honest node feels it as back-pressure.
    pub pool_max_requests: usize,
    /// Bytes of pending requests taken from each admitting node.
    pub pool_max_bytes: usize,
    /// Bytes of requests in batches that are proposed and not yet stable. While there are more,
    /// nothing is proposed or prepared; bounds memory where the watermarks alone allow 2 GiB.
    pub inflight_max_bytes: usize,
    /// Own messages are sent again after this time, then after twice that, and so on ...
    pub resend_initial: Duration,
    /// ... up to this.
    pub resend_max: Duration,
    /// Own requests that nobody has proposed are sent again after this time, doubling up to
    /// [`Settings::request_resend_max`].
    pub request_resend: Duration,
    /// The longest time between two sendings of a request.
    pub request_resend_max: Duration,
    /// A request of another node that is neither ordered nor sent again for this long is dropped:
    /// its node would have sent it again if it still waited for it.
    pub request_expiry: Duration,
    /// How long an executed request is not taken again. Its node repeats it only if it passed the
    /// execution over; it then learns the outcome from a second one, which changes nothing.
    pub request_memory: Duration,
    /// How long a body may be missing before it is asked for: bundles often come just behind.
    pub fetch_delay: Duration,
    /// Time between two askings for the same bodies, blocks or certificates.
    pub fetch_interval: Duration,
    /// How long execution may stand still, while others are known to be ahead, before blocks are
    /// fetched.
    pub behind_delay: Duration,
    /// How often the last own CHECKPOINT is repeated when nothing happens, so that who missed
    /// everything learns of it.
    pub status_interval: Duration,
    /// How long execution may stand still while requests wait before the primary is given up; also
    /// how long a new primary may take for its NEW-VIEW. Doubles with each view that fails, up to ...
    pub request_timeout: Duration,
    /// ... this.
    pub request_timeout_max: Duration,
    /// How many times `request_timeout` the oldest request of one node may wait for its turn while
    /// others are executed: what is longer is censorship.
    pub patience: u32,
    /// How long any request may wait in all under one primary.
    pub request_age_max: Duration,
    /// How long a replica that lost its log listens before it settles on how much it may have
    /// voted for.
    pub lost_log_wait: Duration,
}

impl Settings {
    /// The usual settings.
    pub const fn new(network: NetworkId, replicas: ReplicaSet, key: SecretKey) -> Self {
        Self {
            network,
            replicas,
            key,
            batch_max_requests: defaults::BATCH_MAX_REQUESTS as usize,
            batch_max_bytes: defaults::BATCH_MAX_BYTES as usize,
            batch_delay: defaults::BATCH_DELAY,
            pipeline_batches: defaults::PIPELINE_BATCHES as u64,
            in_flight_batches: IN_FLIGHT_BATCHES as u64,
            bundle_delay: defaults::BUNDLE_DELAY,
            pool_max_requests: defaults::POOL_MAX_REQUESTS as usize,
            pool_max_bytes: defaults::POOL_MAX_BYTES as usize,
            inflight_max_bytes: defaults::INFLIGHT_MAX_BYTES as usize,
            resend_initial: defaults::RESEND_INITIAL,
            resend_max: defaults::RESEND_MAX,
            request_resend: defaults::REQUEST_RESEND,
            request_resend_max: defaults::REQUEST_RESEND_MAX,
            request_expiry: Duration::from_secs(60),
            request_memory: Duration::from_secs(30),
            fetch_delay: Duration::from_millis(50),
            fetch_interval: defaults::FETCH_INTERVAL,
            behind_delay: Duration::from_millis(500),
            status_interval: Duration::from_secs(1),
            request_timeout: defaults::REQUEST_TIMEOUT,
            request_timeout_max: defaults::REQUEST_TIMEOUT_MAX,
            patience: 4,
            request_age_max: Duration::from_secs(30),
            lost_log_wait: Duration::from_secs(10),
        }
    }
}
