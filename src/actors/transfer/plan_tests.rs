//! Whatever peers do, and in whatever order answers come: a transfer ends, in order, within its memory.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// When the network gives up a request.
const GIVEN_UP: Duration = Duration::from_secs(20);

fn limits(faulty: usize) -> Limits {
    Limits {
        range_blocks: 128,
        ahead_blocks: 2_048,
        requests_per_peer: 2,
        answer_bytes: 12 * MIB,
        buffered_bytes: 64 * MIB,
        bytes_per_s: 64 * MIB,
        faulty,
    }
}

fn node(at: usize) -> NodeId {
    NodeId([u8::try_from(at).unwrap(); 32])
}

fn plan(peers: usize, bound: u64) -> Plan<u64> {
    Plan::new(limits(1), (0..peers).map(node), Height(0), Height(bound), Duration::ZERO)
}

fn blocks(heights: std::ops::RangeInclusive<u64>) -> Vec<(u64, u64)> {
    heights.map(|height| (height, 1_000)).collect()
}

/// The blocks that were asked for, from a peer that has blocks up to `head`.
fn good(ask: Ask, head: u64) -> Answer<u64> {
    let last = head.min(ask.from.0 + ask.count - 1);
    Answer::Blocks { head: Height(head), blocks: blocks(ask.from.0..=last) }
}

fn asks(plan: &mut Plan<u64>, now: Duration) -> Vec<Ask> {
    std::iter::from_fn(|| plan.next_ask(now)).collect()
}

#[test]
fn several_ranges_are_asked_of_several_peers_at_once() {
    let mut plan = plan(3, 1_000);
    let first = asks(&mut plan, Duration::ZERO);
    let ranges: Vec<(u64, u64)> = first.iter().map(|ask| (ask.from.0, ask.count)).collect();
    assert_eq!(ranges, [(1, 8), (9, 8), (17, 8)]);
    for ask in first {
        plan.answered(ask.id, good(ask, 1_000), SECOND / 10);
    }
    // Who answered well gets more.
    assert!(asks(&mut plan, SECOND / 10).len() > 3);
}

#[test]
fn blocks_that_came_first_wait_for_those_below_them() {
    let mut plan = plan(2, 16);
    let [low, high] = asks(&mut plan, Duration::ZERO).try_into().unwrap();
    plan.answered(high.id, good(high, 16), SECOND);
    assert_eq!(plan.take(1_000, u64::MAX), Vec::<u64>::new());
    plan.answered(low.id, good(low, 16), SECOND);
    assert_eq!(plan.take(10, u64::MAX), (1..=10).collect::<Vec<_>>());
    assert_eq!(plan.take(10, u64::MAX), Vec::<u64>::new(), "one batch is applied at a time");
    plan.reached(Height(10));
    assert_eq!(plan.take(10, 5_000), (11..=15).collect::<Vec<_>>(), "no more bytes than allowed");
}

#[test]
fn peers_that_take_requests_and_never_answer_do_not_keep_all_the_room() {
    let faulty = 5;
    let stall = |at: usize| at < faulty;
    let mut plan = Plan::new(limits(faulty), (0..15).map(node), Height(0), Height(100_000), Duration::ZERO);
    // All answer well, so that each may be asked twice at once; then the first ones stall.
    for _ in 0..3 {
        for ask in asks(&mut plan, Duration::ZERO) {
            plan.answered(ask.id, good(ask, 100_000), SECOND / 100);
        }
        while !plan.take(1_000, u64::MAX).is_empty() {
            plan.reached(Height(plan.taken.0));
        }
    }
    let mut now = SECOND;
    for _ in 0..40 {
        now += SECOND / 4;
        plan.on_time(now);
        for ask in asks(&mut plan, now) {
            if !(0..15).any(|at| node(at) == ask.peer && stall(at)) {
                plan.answered(ask.id, good(ask, 100_000), now);
            }
        }
        while !plan.take(1_000, u64::MAX).is_empty() {
            plan.reached(Height(plan.taken.0));
        }
    }
    let owed = plan.asked.values().filter(|asked| asked.late).count();
    assert!(owed >= faulty, "the stallers were asked and are late: {owed}");
    assert!(plan.next_ask(now).is_some_and(|ask| (faulty..15).any(|at| node(at) == ask.peer)));
    assert!(plan.reserved_bytes() <= plan.limits.buffered_bytes);
}

#[test]
fn what_an_answer_leaves_out_is_asked_again() {
    let mut plan = plan(1, 100);
    let ask = plan.next_ask(Duration::ZERO).unwrap();
    plan.answered(ask.id, Answer::Blocks { head: Height(100), blocks: blocks(1..=3) }, SECOND);
    assert_eq!(plan.next_ask(SECOND).unwrap().from, Height(4));
}

#[test]
fn a_range_whose_peer_is_late_goes_to_another_and_counts_against_the_first() {
    let mut plan = plan(2, 8);
    let late = plan.next_ask(Duration::ZERO).unwrap();
    assert_eq!(plan.next_ask(SECOND), None, "it has time");
    assert_eq!(plan.on_time(FIRST_PATIENCE), 1);
    let again = plan.next_ask(FIRST_PATIENCE).unwrap();
    assert_eq!(again.from, late.from);
    assert_ne!(again.peer, late.peer);
    // Both answer: what comes a second time is of no use and does no harm.
    plan.answered(again.id, good(again, 8), 4 * SECOND);
    plan.answered(late.id, good(late, 8), 5 * SECOND);
    assert_eq!(plan.take(100, u64::MAX).len(), 8);
    plan.reached(Height(8));
    assert_eq!(plan.reserved_bytes(), 0);
}

#[test]
fn who_sends_something_wrong_is_left_alone() {
    let mut plan = plan(2, 8);
    let ask = plan.next_ask(Duration::ZERO).unwrap();
    plan.answered(ask.id, Answer::Bad, Duration::ZERO);
    let again = plan.next_ask(Duration::ZERO).unwrap();
    assert_ne!(again.peer, ask.peer);
    plan.answered(again.id, Answer::Failed, Duration::ZERO);
    let later = plan.next_ask(20 * SECOND).unwrap();
    assert_eq!(later.peer, again.peer);
    plan.answered(later.id, Answer::Failed, 20 * SECOND);
    assert_eq!(plan.usable_peers(31 * SECOND), 2, "but not for ever");
}

#[test]
fn a_busy_peer_gets_time() {
    let mut plan = plan(1, 8);
    let ask = plan.next_ask(Duration::ZERO).unwrap();
    plan.answered(ask.id, Answer::Busy, SECOND);
    assert_eq!(plan.next_ask(SECOND), None);
    assert!(plan.next_ask(SECOND + SECOND / 10).is_some());
}

#[test]
fn a_transfer_ends_only_when_a_peer_has_nothing_more() {
    let mut plan = plan(1, 10);
    let ask = plan.next_ask(Duration::ZERO).unwrap();
    plan.answered(ask.id, good(ask, 10), SECOND);
    assert_eq!(plan.take(100, u64::MAX).len(), 8);
    plan.reached(Height(8));
    let ask = plan.next_ask(SECOND).unwrap();
    plan.answered(ask.id, good(ask, 10), SECOND);
    assert_eq!(plan.take(100, u64::MAX), [9, 10]);
    plan.reached(Height(10));
    assert!(!plan.is_done());
    let probe = plan.next_ask(SECOND).unwrap();
    plan.answered(probe.id, good(probe, 12), SECOND);
    assert_eq!(plan.take(100, u64::MAX), [11, 12]);
    plan.reached(Height(12));
    let probe = plan.next_ask(SECOND).unwrap();
    plan.answered(probe.id, Answer::Blocks { head: Height(12), blocks: Vec::new() }, SECOND);
    assert_eq!(plan.next_ask(SECOND), None);
    assert!(plan.is_done());
}

#[test]
fn one_liar_does_not_move_the_target() {
    let mut plan = plan(3, 1_000);
    let heads = [u64::MAX, 40, 50];
    for ask in asks(&mut plan, Duration::ZERO) {
        let head = heads[usize::from(ask.peer.0[0])];
        plan.answered(ask.id, Answer::Blocks { head: Height(head), blocks: Vec::new() }, SECOND);
    }
    assert_eq!(plan.target(), Height(50));
}

#[test]
fn what_the_ledger_got_by_itself_is_not_fetched() {
    let mut plan = plan(1, 100);
    let ask = plan.next_ask(Duration::ZERO).unwrap();
    plan.reached(Height(50));
    plan.answered(ask.id, good(ask, 100), SECOND);
    assert_eq!(plan.take(100, u64::MAX), Vec::<u64>::new());
    assert_eq!(plan.next_ask(SECOND).unwrap().from, Height(51));
}

#[test]
fn blocks_that_the_ledger_refuses_are_fetched_again() {
    let mut plan = plan(1, 8);
    let ask = plan.next_ask(Duration::ZERO).unwrap();
    plan.answered(ask.id, good(ask, 8), SECOND);
    assert_eq!(plan.take(6, u64::MAX).len(), 6);
    plan.reached(Height(4));
    plan.refused();
    assert_eq!(plan.reserved_bytes(), 0);
    assert_eq!(plan.next_ask(SECOND).unwrap().from, Height(5));
}

/// How a peer of the simulation behaves.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    /// Answers after so many milliseconds, says `Busy` and fails now and then, has all but so many blocks.
    Correct { ms: u64, unreliable: u8, lacks: u64 },
    /// Never answers.
    Silent,
    /// Sends what does not verify.
    Forger,
    /// Says to have everything and gives nothing.
    Braggart,
    /// Gives a few blocks, then nothing for long.
    Teaser,
    /// Says to have nothing.
    Modest,
}

fn correct(lacks: impl Strategy<Value = u64>) -> impl Strategy<Value = Behaviour> {
    (1..2_000_u64, 0..60_u8, lacks).prop_map(|(ms, unreliable, lacks)| Behaviour::Correct {
        ms,
        unreliable,
        lacks,
    })
}

fn faulty() -> impl Strategy<Value = Behaviour> {
    use Behaviour::{Braggart, Forger, Modest, Silent, Teaser};
    prop::sample::select(vec![Silent, Forger, Braggart, Teaser, Modest])
}

/// f faulty ones, f+1 correct ones that are at the top, and some that are behind.
fn peers() -> impl Strategy<Value = (usize, Vec<Behaviour>)> {
    (1..=2_usize).prop_flat_map(|f| {
        let top = prop::collection::vec(correct(Just(0)), f + 1);
        let behind = prop::collection::vec(correct(0..50_u64), 0..=f);
        (Just(f), prop::collection::vec(faulty(), f), top, behind)
            .prop_map(|(f, faulty, top, behind)| (f, [faulty, top, behind].concat()))
    })
}

/// Peers, answers on their way, and a ledger that applies what it gets.
struct World {
    plan: Plan<u64>,
    behaviours: Vec<Behaviour>,
    /// When an answer comes, in milliseconds, and to which request.
    coming: Vec<(u64, Ask, Answer<u64>)>,
    applying: Option<(u64, Height)>,
    sizes: Vec<u64>,
    chance: u64,
    head: u64,
    ledger: u64,
    ms: u64,
}

impl World {
    fn roll(&mut self) -> u8 {
        // Xorshift: as good as chance, and the same for the same seed.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 32).to_le_bytes()[0]
    }

    fn size(&self, height: u64) -> u64 {
        self.sizes[usize::try_from(height).unwrap() % self.sizes.len()]
    }

    /// As many blocks as one answer carries.
    fn fitting(&self, ask: Ask, head: u64, most: usize) -> Answer<u64> {
        let last = head.min(ask.from.0 + ask.count - 1);
        let mut bytes = 0;
        let fits = |height: &u64| {
            bytes += self.size(*height);
            bytes <= 12 * MIB
        };
        let blocks = (ask.from.0..=last).take_while(fits).take(most);
        let blocks = blocks.map(|height| (height, self.size(height))).collect();
        Answer::Blocks { head: Height(head), blocks }
    }

    fn answer(&mut self, ask: Ask) {
        let none = |head| Answer::Blocks { head: Height(head), blocks: Vec::new() };
        let roll = self.roll();
        let (after, answer) = match self.behaviours[usize::from(ask.peer.0[0])] {
            Behaviour::Correct { unreliable, .. } if roll < unreliable => match roll % 3 {
                0 => (5, Answer::Busy),
                1 => (5, Answer::Failed),
                _ => (GIVEN_UP.as_millis().try_into().unwrap(), Answer::Failed),
            },
            Behaviour::Correct { ms, lacks, .. } => {
                (ms, self.fitting(ask, self.head.saturating_sub(lacks), 1_000))
            }
            Behaviour::Silent => (20_000, Answer::Failed),
            Behaviour::Forger => (1, Answer::Bad),
            Behaviour::Braggart => (1, none(u64::MAX)),
            Behaviour::Teaser if roll.is_multiple_of(2) => (1, self.fitting(ask, self.head, 1)),
            Behaviour::Teaser => (19_000, none(self.head)),
            Behaviour::Modest => (1, none(0)),
        };
        self.coming.push((self.ms + after, ask, answer));
    }

    fn step(&mut self) {
        let now = Duration::from_millis(self.ms);
        self.plan.on_time(now);
        while let Some(ask) = self.plan.next_ask(now) {
            self.answer(ask);
        }
        for at in 0..self.behaviours.len() {
            let in_flight = self.coming.iter().filter(|(_, ask, _)| ask.peer == node(at)).count();
            assert!(in_flight <= 2, "{in_flight} requests at once to one peer");
        }
        let most = self.plan.limits.buffered_bytes;
        assert!(self.plan.reserved_bytes() <= most, "{} bytes", self.plan.reserved_bytes());
        if self.applying.is_none() {
            let blocks = self.plan.take(64, 8 * MIB);
            for (block, expected) in blocks.iter().zip(self.ledger + 1..) {
                assert_eq!(*block, expected, "in order, without gaps");
            }
            if let Some(last) = blocks.last() {
                self.applying = Some((self.ms + blocks.len() as u64, Height(*last)));
            }
        }
        let events = self.coming.iter().map(|(at, ..)| *at).chain(self.applying.map(|(at, _)| at));
        self.ms = events.min().unwrap_or(u64::MAX).min(self.ms + 50).max(self.ms + 1);
        self.deliver();
    }

    fn deliver(&mut self) {
        let (due, coming) = std::mem::take(&mut self.coming).into_iter().partition(|(at, ..)| *at <= self.ms);
        self.coming = coming;
        for (_, ask, answer) in due {
            self.plan.answered(ask.id, answer, Duration::from_millis(self.ms));
        }
        if let Some((at, height)) = self.applying
            && at <= self.ms
        {
            self.applying = None;
            // Now and then the ledger refuses, as if somebody had applied something else.
            if self.roll().is_multiple_of(16) {
                return self.plan.refused();
            }
            self.ledger = height.0;
            self.plan.reached(height);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn whatever_peers_do_a_transfer_ends_in_order_and_within_its_memory(
        (f, behaviours) in peers(),
        head in 1..600_u64,
        grows in 0..100_u64,
        slack in 0..5_000_u64,
        sizes in prop::collection::vec(prop_oneof![1..10_000_u64, 1..9 * MIB], 1..20),
        chance in 1..u64::MAX,
    ) {
        let nodes = (0..behaviours.len()).map(node);
        let plan = Plan::new(limits(f), nodes, Height(0), Height(head + slack), Duration::ZERO);
        let mut world = World {
            plan, behaviours, coming: Vec::new(), applying: None, sizes, chance, head, ledger: 0, ms: 0,
        };
        let grown = head + grows;
        while !world.plan.is_done() {
            world.step();
            if world.head < grown && world.ms.is_multiple_of(7) {
                world.head += 1;
            }
            prop_assert!(world.ms < 3_600_000, "it takes an hour: {:?}", world.plan);
        }
        prop_assert!(world.ledger >= head, "{} of {head}", world.ledger);
    }
}
