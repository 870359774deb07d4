//! Why something waits that needs the network: the nodes are asked, and the first reason that blocks counts.
//!
//! A network that has lost its quorum loses nothing, so waiting is right. Waiting without a word is not.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::join_all;
use url::Url;

use super::http::Nodes;
use super::output::plain;
use super::status::MAX_ANSWER_BYTES;
use crate::api::ConsensusView;
use crate::clock::{Clock as _, SystemClock};

/// After so long without anything final it is told ...
pub(super) const TOLD_AFTER: Duration = Duration::from_secs(5);

/// ... and after so long again.
pub(super) const TOLD_EVERY: Duration = Duration::from_secs(30);

/// How long a node may take to say why.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Tells again and again on standard error why an operation waits; never ends.
pub(super) async fn tell(apis: Vec<Url>) -> Infallible {
    let clock = SystemClock::new();
    let mut wait = TOLD_AFTER;
    loop {
        tokio::time::sleep(wait).await;
        wait = TOLD_EVERY;
        let why = why(apis.clone()).await;
        eprintln!("warning: it has not become final for {} s: {why}", clock.monotonic().as_secs());
    }
}

/// What the nodes say.
pub(super) async fn why(apis: Vec<Url>) -> String {
    // All at once: several that hang must not keep the caller from its limit for long.
    let asked = apis.into_iter().map(|api| async {
        let node = Nodes::new(vec![api]).ok()?.reading(MAX_ANSWER_BYTES);
        let answer = node.get::<ConsensusView>("/v1/consensus", &[]);
        tokio::time::timeout(ANSWERS_WITHIN, answer).await.ok()?.ok()
    });
    let answers: Vec<ConsensusView> = join_all(asked).await.into_iter().flatten().collect();
    if let Some(why) = answers.iter().flat_map(|answer| &answer.why).find(|why| why.blocks) {
        return plain(&why.text);
    }
    match answers.len() {
        0 => "no node's API answers; are they running?".to_owned(),
        _ => "the nodes say that they advance".to_owned(),
    }
}
