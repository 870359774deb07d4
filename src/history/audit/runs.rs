//! Numbers in runs: which seqs were seen or named, without keeping each.
//!
//! Messages of a client have numbers that ascend almost without gaps, so a week of them is a few runs.

use std::collections::BTreeMap;

/// A set of numbers, as the first and the last of each run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    pub(super) fn insert(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first, last);
        if first > last {
            return;
        }
        // Every run that touches the new one becomes a part of it.
        while let Some((from, to)) =
            self.0.range(..=last.saturating_add(1)).next_back().map(|(a, b)| (*a, *b))
        {
            if to.saturating_add(1) < first {
                break;
            }
            self.0.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        self.0.insert(first, last);
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, last)| number <= *last)
    }

    pub(super) fn highest(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, last)| *last)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// What is not in the set, from 1 up to and with `to`.
    pub(super) fn gaps(&self, to: u64) -> Vec<(u64, u64)> {
        let (mut gaps, mut next) = (Vec::new(), 1);
        for (first, last) in self.iter() {
            if first > to {
                break;
            }
            if first > next {
                gaps.push((next, first - 1));
            }
            next = last.saturating_add(1);
        }
        if next <= to {
            gaps.push((next, to));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_the_set_of_what_was_put_in(runs in proptest::collection::vec((1_u64..40, 0_u64..5), 0..20)) {
            let (mut set, mut model) = (Runs::default(), BTreeSet::new());
            for (first, more) in runs {
                set.insert(first, first + more);
                model.extend(first..=first + more);
            }
            for number in 0..50 {
                prop_assert_eq!(set.contains(number), model.contains(&number), "{}", number);
            }
            prop_assert_eq!(set.highest(), model.last().copied().unwrap_or_default());
            let runs: Vec<_> = set.iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", runs);
            let missing: BTreeSet<u64> = set.gaps(45).into_iter().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(missing, (1..=45).filter(|number| !model.contains(number)).collect());
        }
    }
}
