//! The virtual network: delay, loss, duplication, reordering, one-way and full partitions.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::rng::Rng;

/// What the network does to each message.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub loss_percent: u64,
    pub duplicate_percent: u64,
    pub min_delay_us: u64,
    pub max_delay_us: u64,
}

impl Weather {
    pub const FAIR: Self =
        Self { loss_percent: 0, duplicate_percent: 0, min_delay_us: 200, max_delay_us: 2_000 };
    pub const STORM: Self =
        Self { loss_percent: 15, duplicate_percent: 10, min_delay_us: 200, max_delay_us: 40_000 };

    /// Some weather, often bad. Delays spread by so much reorder everything.
    pub fn any(rng: &mut Rng) -> Self {
        Self {
            loss_percent: rng.pick(&[0, 0, 1, 5, 15, 40]),
            duplicate_percent: rng.pick(&[0, 5, 30]),
            min_delay_us: 200,
            max_delay_us: rng.pick(&[1_000, 5_000, 40_000, 200_000]),
        }
    }

    pub fn delay(&self, rng: &mut Rng) -> Duration {
        Duration::from_micros(rng.between(self.min_delay_us, self.max_delay_us))
    }
}

/// Which links are cut, each way for itself.
#[derive(Debug, Default)]
pub struct Links {
    cut: BTreeSet<(usize, usize)>,
    /// Never healed: they are part of how an adversary is built.
    torn: BTreeSet<(usize, usize)>,
}

impl Links {
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.contains(&(from, to)) || self.torn.contains(&(from, to))
    }

    /// Nothing that `from` sends reaches `to`.
    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    /// The same for good.
    pub fn tear(&mut self, from: usize, to: usize) {
        self.torn.insert((from, to));
    }

    /// No link joins the two sides.
    pub fn split(&mut self, nodes: usize, is_left: impl Fn(usize) -> bool) {
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| is_left(from) != is_left(*to)) {
                self.cut_one_way(from, to);
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }
}
