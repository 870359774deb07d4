//! What one run of the checker covers, and the mistakes that can be made in it.

use ledgermq::crypto::SecretKey;
use ledgermq::ledger::ReplicaSet;
use ledgermq::types::View;

/// n
pub const REPLICAS: usize = 4;

/// The most views that a run can have, 0 and up.
pub const MAX_VIEWS: usize = 3;

/// The most sequence numbers that a run can have, 1 and up.
pub const MAX_NUMBERS: usize = 2;

/// The keys of the replicas; replica `i` of the model is number `i` of the sorted set.
pub fn keys() -> Vec<SecretKey> {
    let mut keys: Vec<_> = (1..=REPLICAS as u8).map(|at| SecretKey::from_seed(&[at; 32])).collect();
    keys.sort_by_key(SecretKey::node_id);
    keys
}

/// The set that the core computes quorums and primaries from.
pub fn replica_set() -> ReplicaSet {
    ReplicaSet::new(keys().iter().map(SecretKey::node_id).collect()).unwrap()
}

/// A mistake in the protocol. With each of them the checker must find two replicas that disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// A quorum is one smaller.
    QuorumTooSmall,
    /// A replica sends COMMIT for what it agreed to, without waiting for PREPAREs.
    CommitWithoutPrepares,
    /// A replica agrees to every proposal for one number, not only to the first.
    EquivocationAccepted,
    /// A replica goes on voting in the views that it gave up.
    OldViewVotes,
    /// What VIEW-CHANGEs say was prepared is not carried over.
    PreparedIgnored,
    /// What a VIEW-CHANGE says was prepared is believed without its certificate.
    CertificatesBelieved,
    /// What a NEW-VIEW proposes is believed; nobody computes it again.
    ProposalsBelieved,
    /// A NEW-VIEW may rest on one VIEW-CHANGE less than a quorum.
    NewViewOfTooFew,
    /// A number that the NEW-VIEW carries over may be proposed afresh.
    CarriedProposedAfresh,
    /// Of two certificates for a number, that of the lower view is carried over.
    LowestViewChosen,
    /// A VIEW-CHANGE carries only what was prepared in the view that ends.
    EarlierViewsForgotten,
}

/// The bounds of one run.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The faulty replica.
    pub byzantine: usize,
    /// Views 0 up to this, exclusive.
    pub views: usize,
    /// Sequence numbers 1 up to this, inclusive.
    pub numbers: usize,
    /// The one number stands for any of many: others above and below it may hold anything, so a
    /// NEW-VIEW may carry a null batch over for it whenever nothing was prepared there.
    pub among_many: bool,
    /// How many different batches a faulty primary proposes for one number in one view.
    pub lies: usize,
    /// Whether a faulty primary's batches are named in the order in which they are agreed to.
    pub named_in_order: bool,
    /// Whether correct replicas say at once what can only help others, see `Protocol::is_forced`.
    pub eager: bool,
    /// The mistake that is made, if any.
    pub mistake: Option<Mistake>,
    /// q, of the core's own replica set.
    pub quorum: usize,
    /// The primary of each view, of the same.
    pub primaries: [usize; MAX_VIEWS],
}

impl Bounds {
    /// One number that stands for any of many, and as many lies as there are correct replicas.
    pub fn any_number(byzantine: usize, views: usize) -> Self {
        Self { among_many: true, lies: REPLICAS - 1, numbers: 1, ..Self::two_numbers(byzantine, views) }
    }

    /// Numbers 1 and 2, and two requests.
    pub fn two_numbers(byzantine: usize, views: usize) -> Self {
        let set = replica_set();
        assert_eq!((set.n(), set.f()), (REPLICAS, 1));
        let primary = |view: usize| set.index_of(&set.primary(View(view as u64))).unwrap();
        Self {
            byzantine,
            views,
            numbers: 2,
            among_many: false,
            lies: 2,
            named_in_order: true,
            eager: false,
            mistake: None,
            quorum: set.quorum(),
            primaries: std::array::from_fn(primary),
        }
    }

    /// The same, whatever a faulty primary's batches are called.
    pub fn with_any_names(self) -> Self {
        Self { named_in_order: false, ..self }
    }

    /// The same, with fewer states that decide as much.
    pub fn eagerly(self) -> Self {
        Self { eager: true, ..self }
    }

    /// The same with a mistake.
    pub fn with(mut self, mistake: Mistake) -> Self {
        self.mistake = Some(mistake);
        if mistake == Mistake::QuorumTooSmall {
            self.quorum -= 1;
        }
        self
    }

    /// Whether this mistake is made.
    pub fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// The correct replicas.
    pub fn correct(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let byzantine = self.byzantine;
        (0..REPLICAS).filter(move |at| *at != byzantine)
    }

    /// Whether the primary of `view` is the faulty replica.
    pub fn is_led_by_liar(&self, view: usize) -> bool {
        self.primaries[view] == self.byzantine
    }

    /// How many different fresh batches can come up for one number in `view`. A correct primary
    /// proposes one; where certificates are believed, others can be invented.
    pub fn fresh(&self, view: usize) -> usize {
        let invented = usize::from(self.makes(Mistake::CertificatesBelieved));
        if self.is_led_by_liar(view) { self.lies } else { 1 + invented }
    }

    /// Pairs of correct replicas that are never a primary, so that exchanging them changes nothing.
    pub fn alike(&self) -> Vec<(usize, usize)> {
        let backups: Vec<usize> =
            self.correct().filter(|at| !self.primaries[..self.views].contains(at)).collect();
        backups.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }
}
