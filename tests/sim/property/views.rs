//! Views: nothing is signed for a view that was given up (1999, section 4.4), and nobody moves on by
//! more than a correct replica wants: one view further on its own suspicion, else only to where a
//! correct replica is already.

use std::collections::BTreeMap;

use ledgermq::pbft::message::Content;
use ledgermq::types::View;

use super::{Broken, Property, Seen, World, ensure};

#[derive(Default)]
pub struct Views {
    /// The highest view for which each instance sent VIEW-CHANGE.
    given_up: BTreeMap<usize, View>,
    /// The view of each instance after its last step.
    views: BTreeMap<usize, View>,
    /// The highest view in which a correct replica ever was.
    highest: View,
}

impl Property for Views {
    fn name(&self) -> &'static str {
        "views"
    }

    fn check(&mut self, world: &World, at: usize, seen: &Seen) -> Result<(), Broken> {
        if world.faulty.contains(&at) {
            return Ok(());
        }
        match seen {
            Seen::Started(_) => drop(self.views.remove(&at)),
            Seen::Sent(signed) => self.sent(at, &signed.content)?,
            Seen::Stepped(step) => {
                let view = step.0.view;
                let before = self.views.insert(at, view).unwrap_or_default();
                ensure!(before <= view, "replica {at} went back from view {before} to {view}");
                let wanted = view <= self.highest.next();
                ensure!(
                    wanted,
                    "replica {at} went to view {view}, and no correct one is beyond {}",
                    self.highest
                );
                self.highest = self.highest.max(view);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Views {
    fn sent(&mut self, at: usize, content: &Content) -> Result<(), Broken> {
        let Some(view) = content.view() else { return Ok(()) };
        let given_up = self.given_up.entry(at).or_default();
        if let Content::ViewChange(_) = content {
            *given_up = view.max(*given_up);
            return Ok(());
        }
        ensure!(view >= *given_up, "replica {at} gave up the views below {given_up} and sent {content:?}");
        Ok(())
    }
}
