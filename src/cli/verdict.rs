//! What `ledgermq status` concludes: how the network is, and which replicas do not take part.
//!
//! Each node is believed about itself; about one that does not answer, or that the others cannot
//! reach, more than half of the others are. The network advances if as many nodes say so as must agree
//! (or all that were asked, if those are fewer), and as many replicas can vote together; who is behind
//! can. It is healthy if besides all replicas take part: they answer, vote, are level, and are in one view.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::output::plain;
use crate::api::{ConsensusView, ReplicaLine, ReplicaStateView, VerdictCode, Why};
use crate::ledger::ReplicaSet;
use crate::types::{Hash, Height, NodeId, View};

/// So many reasons of one node are told. A node has fewer to give.
const MAX_REASONS: usize = 64;

/// Reasons that keep the node that gives them from taking part, and it alone.
const OWN: [&str; 7] = [
    "no_quorum_connected",
    "loop_busy",
    "log_disk_slow",
    "executor_busy",
    "this_node_is_behind",
    "this_node_lacks_requests",
    "proposal_refused",
];

/// How a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// All replicas take part.
    Healthy,
    /// It advances, and some replica does not take part.
    Degraded,
    /// Nothing becomes final.
    Halted,
    /// Nodes have different blocks, or are of different networks.
    Disagrees,
    /// Nobody answers, or too few.
    CannotTell,
}

/// One node, asked.
#[derive(Debug, Serialize)]
pub(super) struct Asked {
    pub(super) api: String,
    pub(super) answer: Option<ConsensusView>,
    pub(super) problem: Option<String>,
}

/// A reason, and the numbers of the nodes that give it.
#[derive(Debug, Serialize)]
pub(super) struct Said {
    pub(super) by: Vec<usize>,
    #[serde(flatten)]
    pub(super) why: Why,
}

/// A replica that does not take part.
#[derive(Debug, Serialize)]
pub(super) struct Out {
    pub(super) replica: usize,
    pub(super) node: NodeId,
    /// What keeps it.
    pub(super) what: String,
    /// The numbers of the nodes that say so; none if it follows from what several say.
    pub(super) by: Vec<usize>,
    /// Whether it can vote with the others nevertheless.
    pub(super) votes: bool,
}

/// What keeps a replica from taking part, as [`Out`] has it.
#[derive(Debug)]
struct Trouble {
    what: String,
    by: Vec<usize>,
    votes: bool,
}

/// Nodes in one view, by their numbers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct InView {
    pub(super) view: View,
    /// Whether they are on their way to it.
    pub(super) changing: bool,
    pub(super) nodes: Vec<usize>,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) verdict: Verdict,
    pub(super) advancing: bool,
    /// Whether all who answer have nothing to order.
    pub(super) idle: bool,
    /// How many replicas there are, and how many of them take part.
    pub(super) n: usize,
    pub(super) taking_part: usize,
    /// How many more replicas may fail.
    pub(super) tolerates: Option<usize>,
    /// Replicas that do not take part.
    pub(super) out: Vec<Out>,
    /// How many more do not answer, if it is not clear which: not all nodes were asked.
    pub(super) unnamed: usize,
    /// In which views the nodes are that answer and vote.
    pub(super) views: Vec<InView>,
    /// What nodes disagree in.
    pub(super) disagreement: Vec<String>,
    /// Why, of all nodes; each sentence once, whatever its numbers.
    pub(super) why: Vec<Said>,
    pub(super) nodes: Vec<Asked>,
}

impl Report {
    /// The view in which most of the nodes are.
    pub(super) fn main_view(&self) -> Option<View> {
        main_view(&self.views)
    }
}

/// Hashes of blocks: height, hash, and the number of the node in the list.
pub(super) type Blocks = Vec<(Height, Hash, usize)>;

type Answers<'a> = Vec<(usize, &'a ConsensusView)>;

pub(super) fn judge(nodes: Vec<Asked>, certified: &Blocks) -> Report {
    let answers: Answers<'_> =
        nodes.iter().enumerate().filter_map(|(at, asked)| Some((at, asked.answer.as_ref()?))).collect();
    let disagreement = disagreement(&answers, certified);
    // Who is asked twice, at two addresses, has one voice.
    let mut seen = BTreeSet::new();
    let voices: Answers<'_> =
        answers.iter().filter(|(_, answer)| seen.insert(answer.node)).copied().collect();
    let silent_apis = nodes.len() - answers.len();
    let views = views(&voices);
    let (n, quorum) = (middle(&voices, |answer| answer.n), middle(&voices, |answer| answer.quorum));
    let mut out = outs(&voices, main_view(&views));
    let unnamed = mute(&voices, silent_apis, &mut out);
    let able = n.min(ReplicaSet::MAX).saturating_sub(out.iter().filter(|out| !out.votes).count());
    let taking_part = n.min(ReplicaSet::MAX).saturating_sub(out.len() + unnamed);
    let advancing = voices.iter().filter(|(_, answer)| answer.advancing).count();
    let enough = quorum.min(voices.len() + silent_apis);
    let halted = |answer: &ConsensusView| answer.verdict.code == VerdictCode::Halted;
    let verdict = if voices.is_empty() {
        Verdict::CannotTell
    } else if !disagreement.is_empty() {
        Verdict::Disagrees
    } else if advancing + silent_apis < enough
        || able < quorum
        || silent_apis == 0 && voices.iter().all(|(_, answer)| halted(answer))
    {
        Verdict::Halted
    } else if advancing < enough {
        Verdict::CannotTell
    } else if out.is_empty() && unnamed == 0 {
        Verdict::Healthy
    } else {
        Verdict::Degraded
    };
    let idle = |answer: &ConsensusView| answer.why.iter().any(|why| why.code == "nothing_to_order");
    let advances = matches!(verdict, Verdict::Healthy | Verdict::Degraded);
    Report {
        verdict,
        advancing: advances,
        idle: advances && voices.iter().all(|(_, answer)| idle(answer)),
        n,
        taking_part,
        tolerates: match verdict {
            Verdict::Healthy | Verdict::Degraded => Some(taking_part.saturating_sub(quorum)),
            Verdict::Halted => Some(0),
            Verdict::Disagrees | Verdict::CannotTell => None,
        },
        out,
        unnamed,
        views,
        disagreement,
        why: reasons(&answers),
        nodes,
    }
}

/// What the middle one of the nodes says, so that none can say that there are more than there are.
fn middle(answers: &Answers<'_>, of: impl Fn(&ConsensusView) -> usize) -> usize {
    let mut said: Vec<usize> = answers.iter().map(|(_, answer)| of(answer)).collect();
    said.sort_unstable();
    said.get(said.len() / 2).copied().unwrap_or(1)
}

fn number(at: usize, answer: &ConsensusView) -> usize {
    answer.replica.unwrap_or(at)
}

/// The views of those who vote.
fn views(answers: &Answers<'_>) -> Vec<InView> {
    let mut found: BTreeMap<(View, bool), Vec<usize>> = BTreeMap::new();
    for (at, answer) in answers.iter().filter(|(_, answer)| answer.silent.is_none()) {
        let view = answer.view_change.as_ref().map_or(answer.view, |change| change.to);
        found.entry((view, answer.view_change.is_some())).or_default().push(number(*at, answer));
    }
    found.into_iter().map(|((view, changing), nodes)| InView { view, changing, nodes }).collect()
}

/// The begun view of most nodes; of two the later one.
fn main_view(views: &[InView]) -> Option<View> {
    let begun = views.iter().filter(|in_view| !in_view.changing);
    begun.max_by_key(|in_view| (in_view.nodes.len(), in_view.view)).map(|in_view| in_view.view)
}

/// Replicas that do not take part.
fn outs(answers: &Answers<'_>, main: Option<View>) -> Vec<Out> {
    let Some((_, longest)) = answers.iter().max_by_key(|(_, answer)| answer.replicas.len().min(answer.n))
    else {
        return Vec::new();
    };
    let out = |line: &ReplicaLine| {
        let own = answers.iter().find(|(_, answer)| answer.node == line.node);
        let found = own.and_then(|(at, answer)| own_word(answer, number(*at, answer), main));
        let Trouble { what, by, votes } = found.or_else(|| others_word(answers, line.node))?;
        Some(Out { replica: line.seat, node: line.node, what, by, votes })
    };
    longest.replicas.iter().take(ReplicaSet::MAX).filter_map(out).collect()
}

/// Adds the replicas that were asked and did not answer, if it is clear which they are; tells how many more did
/// not. A process that is stopped keeps its connections, so that the others miss it only when they need it.
fn mute(answers: &Answers<'_>, silent_apis: usize, out: &mut Vec<Out>) -> usize {
    let longest = answers.iter().max_by_key(|(_, answer)| answer.replicas.len().min(answer.n));
    let heard = |node| answers.iter().any(|(_, answer)| answer.node == node);
    let lines = longest.iter().flat_map(|(_, answer)| answer.replicas.iter().take(ReplicaSet::MAX));
    let unheard: Vec<&ReplicaLine> = lines.filter(|line| !heard(line.node)).collect();
    let is_out = |line: &ReplicaLine| out.iter().any(|out| out.node == line.node);
    let (known, well): (Vec<&ReplicaLine>, Vec<&ReplicaLine>) = unheard.iter().partition(|line| is_out(line));
    if silent_apis < unheard.len() {
        return silent_apis.saturating_sub(known.len());
    }
    out.extend(well.iter().map(|line| {
        let what = if line.is_primary { "is the primary and does not answer" } else { "does not answer" };
        Out { replica: line.seat, node: line.node, what: what.to_owned(), by: Vec::new(), votes: true }
    }));
    out.sort_by_key(|out| out.replica);
    0
}

/// What keeps a node, this number, from taking part, in its own words or by what it says.
fn own_word(answer: &ConsensusView, number: usize, main: Option<View>) -> Option<Trouble> {
    let no_vote = |what| Some(Trouble { what, by: vec![number], votes: false });
    if let Some(silent) = &answer.silent {
        let when = silent.votes_in_ms.map(|ms| format!(" (again in about {} s)", ms.div_ceil(1000)));
        return no_vote(format!("lost its log and does not vote{}", when.unwrap_or_default()));
    }
    if let Some(change) = &answer.view_change {
        let alone = if change.received.len() <= 1 { " alone" } else { "" };
        return no_vote(format!("has left its view{alone} for view {}, which has not begun", change.to));
    }
    if let Some(main) = main.filter(|main| *main != answer.view) {
        let what = format!("is in view {}, and the others in view {main}", answer.view);
        return Some(Trouble { what, by: Vec::new(), votes: false });
    }
    let own = |why: &&Why| OWN.contains(&why.code.as_str());
    let why = answer.why.iter().take(MAX_REASONS).find(own)?;
    let (what, votes) = match why.code.as_str() {
        "no_quorum_connected" => ("reaches no quorum".to_owned(), false),
        "this_node_is_behind" => ("is behind".to_owned(), true),
        code => (format!("is held up ({})", plain(code)), true),
    };
    Some(Trouble { what, by: vec![number], votes })
}

/// What more than half of the other nodes say of one.
fn others_word(answers: &Answers<'_>, node: NodeId) -> Option<Trouble> {
    let others: Answers<'_> = answers.iter().filter(|(_, answer)| answer.node != node).copied().collect();
    let mut said: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, answer) in &others {
        let line = answer.replicas.iter().take(ReplicaSet::MAX).find(|line| line.node == node);
        if let Some(what) = line.and_then(|line| trouble(line.state)) {
            said.entry(what).or_default().push(number(*at, answer));
        }
    }
    let counted: usize = said.values().map(Vec::len).sum();
    if 2 * counted <= others.len() {
        return None;
    }
    let (what, by) = said.into_iter().max_by_key(|(_, by)| by.len())?;
    Some(Trouble { what: what.to_owned(), by, votes: what == BEHIND })
}

/// What is said of a replica that can vote, and lacks blocks.
const BEHIND: &str = "is behind";

/// Why a replica in that state cannot be counted on.
pub(super) const fn trouble(state: ReplicaStateView) -> Option<&'static str> {
    match state {
        ReplicaStateView::ThisNode | ReplicaStateView::Ok => None,
        ReplicaStateView::Disconnected => Some("is not connected"),
        ReplicaStateView::Silent => Some("is connected and silent"),
        ReplicaStateView::Behind => Some(BEHIND),
        ReplicaStateView::LostLog => Some("lost its log and does not vote"),
        ReplicaStateView::OtherView => Some("is in another view, or on its way to one"),
    }
}

/// What the nodes say, each thing once.
fn reasons(answers: &Answers<'_>) -> Vec<Said> {
    let mut found: Vec<Said> = Vec::new();
    for (at, answer) in answers {
        let number = number(*at, answer);
        for why in answer.why.iter().take(MAX_REASONS) {
            let same =
                |said: &&mut Said| said.why.code == why.code && gist(&said.why.text).eq(gist(&why.text));
            match found.iter_mut().find(same) {
                Some(said) => said.by.push(number),
                None => found.push(Said { by: vec![number], why: why.clone() }),
            }
        }
    }
    found
}

/// The words of a sentence without its numbers: nodes measure times a little differently.
fn gist(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.starts_with(|first: char| first.is_ascii_digit()))
}

/// What cannot be if all are honest, of one network and undamaged.
fn disagreement(answers: &Answers<'_>, certified: &Blocks) -> Vec<String> {
    let mut found = Vec::new();
    let name = |at: &usize| {
        let answer = answers.iter().find(|(number, _)| number == at).map(|(_, answer)| answer);
        format!("node {}", answer.and_then(|answer| answer.replica).unwrap_or(*at))
    };
    if let Some((first, others)) = answers.split_first() {
        for (at, other) in others.iter().filter(|(_, other)| other.network != first.1.network) {
            found.push(format!(
                "{} is of network {}, {} of {}",
                name(&first.0),
                first.1.network.short(),
                name(at),
                other.network.short()
            ));
        }
    }
    let executed = answers.iter().map(|(at, answer)| (answer.height, answer.block, *at));
    let mut heights: BTreeMap<Height, BTreeMap<Hash, Vec<String>>> = BTreeMap::new();
    for (height, hash, at) in certified.iter().copied().chain(executed) {
        let holders = heights.entry(height).or_default().entry(hash).or_default();
        let holder = name(&at);
        if !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    for (height, hashes) in heights.into_iter().filter(|(_, hashes)| hashes.len() > 1) {
        let sides: Vec<String> =
            hashes.iter().map(|(hash, holders)| format!("{hash} at {}", holders.join(", "))).collect();
        found.push(format!("block {height} is {}", sides.join(", but ")));
    }
    found
}
