//! How peers behave: offences, bans, and a rate for what is judged inside of the network.
//!
//! Pure: time is an argument. A ban is short at first and doubles, because an honest node with a
//! bug, or one that runs an old version, must find its way back by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::PeerId;

use crate::network::settings::MAX_OFFENDERS;

/// The first ban; each further one is twice as long.
const FIRST_BAN: Duration = Duration::from_secs(30);

/// The longest ban.
const LONGEST_BAN: Duration = Duration::from_secs(600);

/// Who behaved for so long after the last ban starts anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3600);

/// So many points within [`POINTS_WITHIN`] are a ban.
const BAN_AT: u32 = 8;

/// Points are counted over this time.
const POINTS_WITHIN: Duration = Duration::from_secs(60);

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offence {
    /// Bytes on a direct stream that are not the protocol, or an answer to another question.
    Garbage,
    /// It does not speak our protocols, or not with an Ed25519 key.
    Stranger,
    /// A gossip message that no honest node passes on.
    RejectedGossip,
}

impl Offence {
    /// Its name in logs and metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Garbage => "garbage",
            Self::Stranger => "stranger",
            Self::RejectedGossip => "rejected_gossip",
        }
    }

    /// What it weighs: the first two are never a matter of timing.
    const fn points(self) -> u32 {
        match self {
            Self::Garbage | Self::Stranger => BAN_AT,
            Self::RejectedGossip => 1,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Record {
    points: u32,
    counted_since: Duration,
    bans: u32,
    banned_until: Duration,
}

/// The peers that did something wrong, at most [`MAX_OFFENDERS`].
#[derive(Debug, Default)]
pub(super) struct Conduct {
    records: BTreeMap<PeerId, Record>,
}

impl Conduct {
    /// Notes an offence; returns for how long the peer is banned now, if it is.
    pub(super) fn note(&mut self, peer: PeerId, offence: Offence, now: Duration) -> Option<Duration> {
        self.make_room(&peer);
        let record = self.records.entry(peer).or_insert(Record {
            points: 0,
            counted_since: now,
            bans: 0,
            banned_until: Duration::ZERO,
        });
        if now.saturating_sub(record.counted_since) > POINTS_WITHIN {
            record.points = 0;
            record.counted_since = now;
        }
        record.points += offence.points();
        if record.points < BAN_AT {
            return None;
        }
        let ban = FIRST_BAN.saturating_mul(1 << record.bans.min(8)).min(LONGEST_BAN);
        *record = Record { points: 0, counted_since: now, bans: record.bans + 1, banned_until: now + ban };
        Some(ban)
    }

    /// Whether the peer is banned.
    pub(super) fn is_banned(&self, peer: &PeerId, now: Duration) -> bool {
        self.records.get(peer).is_some_and(|record| record.banned_until > now)
    }

    /// Forgets those who have behaved since.
    pub(super) fn forget_old(&mut self, now: Duration) {
        self.records.retain(|_, record| {
            now < record.banned_until.max(record.counted_since).saturating_add(FORGIVEN_AFTER)
        });
    }

    fn make_room(&mut self, peer: &PeerId) {
        if self.records.len() < MAX_OFFENDERS || self.records.contains_key(peer) {
            return;
        }
        let least = self.records.iter().min_by_key(|(_, record)| record.banned_until);
        if let Some(least) = least.map(|(peer, _)| *peer) {
            self.records.remove(&least);
        }
    }
}

/// How often something may happen: `burst` at once, one more each `every`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    burst: u32,
    every: Duration,
    left: u32,
    counted: Duration,
}

impl Rate {
    /// A rate of which nothing is used yet.
    pub(super) const fn new(burst: u32, every: Duration, now: Duration) -> Self {
        Self { burst, every, left: burst, counted: now }
    }

    /// Uses one, if there is one.
    pub(super) fn try_take(&mut self, now: Duration) -> bool {
        let since = now.saturating_sub(self.counted);
        let earned = u32::try_from(since.as_nanos() / self.every.as_nanos().max(1)).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(self.burst);
            self.counted = now;
        }
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn garbage_is_a_ban_at_once_and_the_next_is_twice_as_long() {
        let (mut conduct, peer) = (Conduct::default(), PeerId::random());
        assert_eq!(conduct.note(peer, Offence::Garbage, SECOND), Some(FIRST_BAN));
        assert!(conduct.is_banned(&peer, FIRST_BAN));
        assert!(!conduct.is_banned(&peer, FIRST_BAN + SECOND));
        assert_eq!(conduct.note(peer, Offence::Stranger, FIRST_BAN + SECOND), Some(2 * FIRST_BAN));
    }

    #[test]
    fn bans_have_a_longest() {
        let (mut conduct, peer) = (Conduct::default(), PeerId::random());
        let last = (0..40).filter_map(|_| conduct.note(peer, Offence::Garbage, SECOND)).last();
        assert_eq!(last, Some(LONGEST_BAN));
    }

    #[test]
    fn a_few_rejected_messages_are_forgiven_and_many_are_not() {
        let (mut conduct, peer) = (Conduct::default(), PeerId::random());
        for _ in 1..BAN_AT {
            assert_eq!(conduct.note(peer, Offence::RejectedGossip, SECOND), None);
        }
        let later = SECOND + POINTS_WITHIN + SECOND;
        for _ in 1..BAN_AT {
            assert_eq!(conduct.note(peer, Offence::RejectedGossip, later), None, "counted anew");
        }
        assert_eq!(conduct.note(peer, Offence::RejectedGossip, later), Some(FIRST_BAN));
    }

    #[test]
    fn memory_for_offenders_is_bounded_and_forgets() {
        let mut conduct = Conduct::default();
        let worst = PeerId::random();
        for _ in 0..3 {
            conduct.note(worst, Offence::Garbage, SECOND);
        }
        for _ in 0..2 * MAX_OFFENDERS {
            conduct.note(PeerId::random(), Offence::Garbage, SECOND);
        }
        assert_eq!(conduct.records.len(), MAX_OFFENDERS);
        assert!(conduct.is_banned(&worst, SECOND));
        conduct.forget_old(SECOND + LONGEST_BAN + FORGIVEN_AFTER);
        assert!(conduct.records.is_empty());
    }

    #[test]
    fn a_rate_allows_a_burst_and_then_one_at_a_time() {
        let mut rate = Rate::new(2, SECOND, Duration::ZERO);
        assert!(rate.try_take(Duration::ZERO));
        assert!(rate.try_take(Duration::ZERO));
        assert!(!rate.try_take(Duration::ZERO));
        assert!(rate.try_take(SECOND));
        assert!(!rate.try_take(SECOND));
        assert!(rate.try_take(1000 * SECOND));
        assert!(rate.try_take(1000 * SECOND));
        assert!(!rate.try_take(1000 * SECOND), "no more than the burst is saved up");
    }
}
