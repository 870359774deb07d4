//! `ledgermq status` against nodes that say what a test wants them to.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::{json as parse, ledgermq};

/// An API that gives these answers; it ends with the test's process.
pub struct Node {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Node {
    pub fn serve(consensus: Value) -> Self {
        Self::serve_block(consensus, None)
    }

    /// With this hash for every block.
    fn serve_block(consensus: Value, block: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let path = answer(stream, &consensus, block.as_deref());
                heard.lock().unwrap().push(path);
            }
        });
        Self { address, asked }
    }

    pub fn api(&self) -> String {
        self.address.to_string()
    }
}

/// Answers one request; gives its path.
fn answer(mut stream: TcpStream, consensus: &Value, block: Option<&str>) -> String {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let height = path.strip_prefix("/v1/blocks?from=").and_then(|rest| rest.split('&').next());
    let body = match height.map(|height| height.parse().unwrap()) {
        None => consensus.to_string(),
        Some(height) => {
            let hash = block.map_or_else(|| hash(height), str::to_owned);
            json!({ "blocks": [{ "hash": hash }], "next": null }).to_string()
        }
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    path
}

/// The hash of the block at a height, at honest nodes.
fn hash(height: u64) -> String {
    format!("{height:02x}").repeat(32)
}

fn id(seat: u8) -> String {
    format!("{:02x}", 0xa0 + seat).repeat(32)
}

/// What node `seat` of four says, which has executed `height` blocks.
fn consensus(seat: u8, height: u64, why: &Value) -> Value {
    let advancing = !why.as_array().unwrap().iter().any(|why| why["blocks"] == true);
    let line = |at: u8| {
        json!({
            "node": id(at), "seat": at, "is_primary": at == 0, "connected": at != 3 || seat == 3,
            "state": if at == seat { "this_node" } else if at == 3 { "disconnected" } else { "ok" },
            "missing_ms": null, "rtt_ms": 0.5, "executed": height, "height": height, "behind": 0, "view": 0,
            "last_heard_ms": 10,
        })
    };
    json!({
        "verdict": { "code": if advancing { "healthy" } else { "halted" }, "tolerates": 1, "text": "x" },
        "seen_view": 0, "network": "11".repeat(32), "node": id(seat), "replica": seat, "n": 4, "f": 1, "quorum": 3, "view": 0,
        "primary": id(0), "view_change": null, "silent": null, "low_watermark": height, "high_watermark": height + 256,
        "executed": height, "accepted": height, "known": height, "height": height,
        "block": hash(height), "certified_height": height, "batches": 0, "pending_requests": 0,
        "oldest_request_ms": null, "timeout_ms": 1000, "last_progress_ms": 5,
        "replicas": (0..4).map(line).collect::<Vec<_>>(), "advancing": advancing, "why": why,
    })
}

fn idle() -> Value {
    json!([{ "code": "nothing_to_order", "blocks": false, "text": "nothing waits" }])
}

fn status(nodes: &[&str], extra: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let apis = nodes.iter().flat_map(|api| ["--api", *api]);
    let args: Vec<&str> = ["status"].into_iter().chain(apis).chain(extra.iter().copied()).collect();
    ledgermq(&dir, &args)
}

#[test]
fn a_network_with_one_dead_node_is_degraded_and_exits_with_3() {
    let nodes: Vec<Node> = (0..3).map(|seat| Node::serve(consensus(seat, 7, &idle()))).collect();
    let apis: Vec<String> = nodes.iter().map(Node::api).collect();
    let asked = [apis[0].as_str(), &apis[1], &apis[2], "127.0.0.1:1"];
    let (code, out, err) = status(&asked, &[]);
    assert_eq!((code, err.as_str()), (3, ""), "{out}");
    for words in [
        "The network is DEGRADED: 3 of 4 replicas take part, which tolerates 0 more failures. It is idle",
        "NO ANSWER  cannot connect to http://127.0.0.1:1/",
        "replica 3 (a3a3a3a3) is not connected (says node 0, 1, 2)",
        "0     a0a0a0a0  0     0        7       7          7         0        2/3        idle",
    ] {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }
    assert!(nodes[0].asked.lock().unwrap().contains(&"/v1/blocks?from=7&limit=1".to_owned()));
    let busy: Vec<Node> = (0..2).map(|seat| Node::serve(consensus(seat, 7, &json!([])))).collect();
    let (code, out, _) = status(&[&busy[0].api(), &busy[1].api()], &["--json"]);
    let said = parse(&out);
    assert_eq!((code, &said["verdict"], &said["advancing"]), (3, &json!("degraded"), &json!(true)), "{out}");
    assert_eq!((&said["tolerates"], &said["taking_part"]), (&json!(0), &json!(3)));
    assert_eq!(
        (&said["out"][0]["replica"], &said["out"][0]["what"]),
        (&json!(3), &json!("is not connected"))
    );
    assert_eq!(said["nodes"][1]["answer"]["replica"], 1);
}

/// Four nodes that are well, and what `change` makes of their answers.
fn four(change: impl Fn(&mut [Value])) -> Vec<Node> {
    let mut answers: Vec<Value> = (0..4).map(|seat| consensus(seat, 7, &idle())).collect();
    for answer in &mut answers {
        for line in answer["replicas"].as_array_mut().unwrap() {
            line["connected"] = json!(true);
            if line["state"] == "disconnected" {
                line["state"] = json!("ok");
            }
        }
    }
    change(&mut answers);
    answers.into_iter().map(Node::serve).collect()
}

/// Exit code, text, and JSON, of all of them asked.
fn asked(nodes: &[Node]) -> (i32, String, Value) {
    let apis: Vec<String> = nodes.iter().map(Node::api).collect();
    let apis: Vec<&str> = apis.iter().map(String::as_str).collect();
    let (code, out, _) = status(&apis, &[]);
    (code, out, parse(&status(&apis, &["--json"]).1))
}

#[test]
fn all_who_take_part_are_healthy_and_the_margin_is_told() {
    let (code, out, said) = asked(&four(|_| {}));
    assert_eq!((code, &said["verdict"], &said["tolerates"]), (0, &json!("healthy"), &json!(1)), "{out}");
    assert!(out.contains("The network is healthy and tolerates 1 more failure. It is idle"), "{out}");
}

#[test]
fn one_that_left_its_view_alone_is_no_well_network() {
    let nodes = four(|answers| {
        let gone = &mut answers[3];
        gone["view"] = json!(1);
        gone["view_change"] = json!({
            "to": 1, "reason": "timeout", "since_ms": 9000, "received": [id(3)], "missing": [id(0), id(1), id(2)],
            "waits_for": "view_changes", "next_view_in_ms": null,
        });
        gone["advancing"] = json!(false);
        gone["why"] =
            json!([{ "code": "view_change_running", "blocks": true, "text": "view 1 is to begin" }]);
    });
    let (code, out, said) = asked(&nodes);
    assert_eq!((code, &said["verdict"], &said["tolerates"]), (3, &json!("degraded"), &json!(0)), "{out}");
    for words in [
        "replica 3 (a3a3a3a3) has left its view alone for view 1, which has not begun (says node 3)",
        "nodes are in different views: node 0, 1, 2 in view 0; node 3 on the way to view 1",
        "3     a3a3a3a3  to 1 ",
    ] {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }
    assert_eq!(said["views"][1], json!({ "view": 1, "changing": true, "nodes": [3] }));
}

#[test]
fn one_that_stayed_in_an_earlier_view_is_told() {
    let nodes = four(|answers| {
        for answer in &mut answers[..3] {
            answer["view"] = json!(2);
        }
    });
    let (code, out, _) = asked(&nodes);
    assert_eq!(code, 3, "{out}");
    assert!(
        out.contains("replica 3 (a3a3a3a3) is in view 0, and the others in view 2\n"),
        "nobody says so; it follows from what all say: {out}"
    );
}

#[test]
fn an_idle_network_in_which_no_quorum_can_vote_together_is_halted() {
    let nodes = four(|answers| {
        for answer in &mut answers[..2] {
            answer["view"] = json!(2);
        }
        answers[3]["silent"] = json!({ "until": 263, "votes_in_ms": 5500 });
    });
    let (code, out, said) = asked(&nodes);
    assert_eq!((code, &said["verdict"], &said["taking_part"]), (1, &json!("halted"), &json!(2)), "{out}");
    // Who is only behind can vote.
    let nodes = four(|answers| {
        for answer in &mut answers[2..] {
            answer["why"] = json!([{ "code": "this_node_is_behind", "blocks": false, "text": "3 behind" }]);
        }
    });
    let (code, out, said) = asked(&nodes);
    assert_eq!((code, &said["tolerates"], &said["taking_part"]), (3, &json!(0), &json!(2)), "{out}");
}

/// Answers of these, to whom all the others seem well.
fn well(seats: std::ops::Range<u8>) -> Vec<Node> {
    let answers = seats.map(|seat| {
        let mut answer = consensus(seat, 7, &idle());
        (answer["replicas"][3]["state"], answer["replicas"][3]["connected"]) = (json!("ok"), json!(true));
        answer
    });
    answers.map(Node::serve).collect()
}

#[test]
fn a_primary_that_is_connected_and_does_not_answer_makes_the_network_degraded() {
    let nodes = well(1..4);
    // As a process that is stopped: it takes the connection and says nothing.
    let stopped = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = stopped.local_addr().unwrap().to_string();
    let apis: Vec<String> = [silent.clone()].into_iter().chain(nodes.iter().map(Node::api)).collect();
    let apis: Vec<&str> = apis.iter().map(String::as_str).collect();
    let (code, out, _) = status(&apis, &[]);
    assert_eq!(code, 3, "{out}");
    for words in [
        "0     NO ANSWER  no answer within 5 s",
        "The network is DEGRADED: 3 of 4 replicas take part, which tolerates 0 more failures. It is idle",
        "replica 0 (a0a0a0a0) is the primary and does not answer",
    ] {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }
    drop(stopped);
    let said = parse(&status(&apis, &["--json"]).1);
    assert_eq!((&said["out"][0]["replica"], &said["out"][0]["node"]), (&json!(0), &json!(id(0))), "{said}");
}

#[test]
fn one_of_some_that_does_not_answer_is_counted_though_nobody_knows_which_replica_it_is() {
    let nodes = well(0..2);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // One silent, and two replicas that it may be; two who answer are no quorum.
    let apis = [nodes[0].api(), nodes[1].api(), closed.clone()];
    let (code, out, _) = status(&apis.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert_eq!(code, 2, "{out}");
    assert!(
        out.contains(&format!("  http://{closed}/: no answer, so that its replica is counted as one")),
        "{out}"
    );
    // All replicas answer: the address is a second one, or none.
    let nodes = four(|_| {});
    let apis: Vec<String> = nodes.iter().map(Node::api).chain([closed]).collect();
    let (code, out, _) = status(&apis.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert!(code == 0 && out.contains("All 4 replicas answer, though 1 of the 5 APIs do not."), "{out}");
}

#[test]
fn a_node_that_lost_its_log_is_shown_in_the_others_view_with_the_time_of_its_return() {
    let nodes = four(|answers| {
        for answer in &mut answers[..3] {
            (answer["view"], answer["primary"]) = (json!(5), json!(id(1)));
        }
        answers[3]["silent"] = json!({ "until": 263, "votes_in_ms": 5500 });
    });
    let (code, out, said) = asked(&nodes);
    assert_eq!((code, &said["verdict"]), (3, &json!("degraded")), "{out}");
    for words in [
        "3     a3a3a3a3  5*    1        7 ",
        "replica 3 (a3a3a3a3) lost its log and does not vote (again in about 6 s) (says node 3)",
    ] {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }
    assert!(!out.contains("different views"), "it votes in none: {out}");
}

#[test]
fn one_that_the_others_do_not_hear_is_not_counted_whatever_it_says_itself() {
    let nodes = four(|answers| {
        for answer in &mut answers[..3] {
            answer["replicas"][3]["state"] = json!("silent");
        }
    });
    let (code, out, _) = asked(&nodes);
    assert_eq!(code, 3, "{out}");
    assert!(out.contains("replica 3 (a3a3a3a3) is connected and silent (says node 0, 1, 2)"), "{out}");
    // The word of one is not enough.
    let nodes = four(|answers| answers[0]["replicas"][3]["state"] = json!("behind"));
    let (code, out, _) = asked(&nodes);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("replica 3 (a3a3a3a3) is behind (says node 0)"), "{out}");
}

#[test]
fn who_names_a_network_and_an_api_means_the_api() {
    let nodes = four(|_| {});
    let (code, out, err) = status(&[&nodes[0].api()], &["--network", "nowhere"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(out.matches("a0a0a0a0").count(), 1, "{out}");
}

#[test]
fn the_columns_and_the_exit_codes_are_in_the_help() {
    let dir = tempfile::tempdir().unwrap();
    let help = crate::succeed(&dir, &["status", "--help"]);
    for words in ["certified  ", "\"2*\"", "Exit codes:", "3  degraded"] {
        assert!(help.contains(words), "{words:?} is not in\n{help}");
    }
}

#[test]
fn a_network_that_stands_still_exits_with_1_and_says_why_once() {
    let why = json!([
        { "code": "no_quorum_connected", "blocks": true, "text": "3 of 4 are needed\u{1b}[2J, missing: replica 3" },
        { "code": "nothing_to_order", "blocks": false, "text": "nothing waits" },
    ]);
    let nodes: Vec<Node> = (0..2).map(|seat| Node::serve(consensus(seat, 7, &why))).collect();
    let (first, other) = (nodes[0].api(), nodes[1].api());
    let asked = [first.as_str(), &other, "127.0.0.1:1", "127.0.0.1:2"];
    let (code, out, _) = status(&asked, &[]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("The network is HALTED: nothing becomes final."), "{out}");
    let told = "no_quorum_connected: 3 of 4 are needed?[2J, missing: replica 3 (says node 0, 1)";
    assert_eq!(out.matches(told).count(), 1, "no node steers the terminal: {out}");
    let (code, out, _) = status(&asked, &["--json"]);
    assert_eq!((code, &parse(&out)["verdict"]), (1, &json!("halted")));
}

#[test]
fn two_who_advance_are_not_enough_of_four() {
    let nodes: Vec<Node> = (0..2).map(|seat| Node::serve(consensus(seat, 7, &json!([])))).collect();
    let (first, other) = (nodes[0].api(), nodes[1].api());
    let (code, out, _) = status(&[&first, &other, "127.0.0.1:1", "127.0.0.1:2"], &[]);
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("CANNOT TELL how the network is: 2 of 4 nodes answer"), "{out}");
}

#[test]
fn different_blocks_at_one_height_are_loud() {
    let one = Node::serve(consensus(0, 7, &json!([])));
    let other = Node::serve_block(consensus(1, 9, &json!([])), Some("cd".repeat(32)));
    let (code, out, _) = status(&[&one.api(), &other.api()], &[]);
    assert_eq!(code, 1, "{out}");
    for words in ["!!! DISAGREEMENT: block 7 is ", &"cd".repeat(32), &hash(7), "NODES DISAGREE"] {
        assert!(out.contains(words), "{words:?} is not in\n{out}");
    }
    // Nodes of different networks are no network.
    let mut stranger = consensus(1, 7, &json!([]));
    stranger["network"] = json!("22".repeat(32));
    let stranger = Node::serve(stranger);
    let (code, out, _) = status(&[&one.api(), &stranger.api()], &[]);
    assert!(code == 1 && out.contains("node 0 is of network 11111111, node 1 of 22222222"), "{out}");
}

#[test]
fn when_nobody_answers_the_exit_code_is_2() {
    let (code, out, err) = status(&["127.0.0.1:1"], &[]);
    assert_eq!((code, err.as_str()), (2, ""));
    assert!(out.contains("no node answers. Are they running?") && out.contains("status --api URL"), "{out}");
    let (code, out, _) = status(&["127.0.0.1:1"], &["--json"]);
    assert_eq!((code, &parse(&out)["verdict"]), (2, &json!("cannot_tell")));
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = ledgermq(&dir, &["status", "--network", "nowhere"]);
    assert!(code == 2 && err.contains("there is no directory nowhere: give --network"), "{err}");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let (code, _, err) = ledgermq(&dir, &["status", "--network", "empty"]);
    assert!(code == 2 && err.contains("empty is no directory of `ledgermq init`"), "{err}");
}

#[test]
fn an_answer_of_something_else_is_told_as_one() {
    let node = Node::serve(json!({ "hello": 1 }));
    let (code, out, _) = status(&[&node.api()], &[]);
    assert!(code == 2 && out.contains("is not the API of this version"), "{out}");
}

#[test]
fn two_sides_of_a_partition_are_both_told_and_the_same_reason_once() {
    let missing = |ms: u32, who: &str| {
        let text = format!("3 of 4 are needed; missing: {who} (for {ms} ms)");
        json!([{ "code": "no_quorum_connected", "blocks": true, "text": text }])
    };
    let sides =
        [missing(12, "c and d"), missing(13, "c and d"), missing(12, "a and b"), missing(9, "a and b")];
    let nodes: Vec<Node> =
        (0..).zip(&sides).map(|(seat, why)| Node::serve(consensus(seat, 7, why))).collect();
    let apis: Vec<String> = nodes.iter().map(Node::api).collect();
    let asked: Vec<&str> = apis.iter().map(String::as_str).collect();
    let (code, out, _) = status(&asked, &[]);
    assert_eq!(code, 1);
    for words in
        ["missing: c and d (for 12 ms) (says node 0, 1)", "missing: a and b (for 12 ms) (says node 2, 3)"]
    {
        assert_eq!(out.matches(words).count(), 1, "{words:?} in\n{out}");
    }
}

#[test]
fn a_node_that_is_given_twice_has_one_voice() {
    let nodes: Vec<Node> = (0..2).map(|seat| Node::serve(consensus(seat, 7, &json!([])))).collect();
    let (first, other) = (nodes[0].api(), nodes[1].api());
    let (code, out, _) = status(&[&first, &first, &other, "127.0.0.1:1"], &[]);
    assert_eq!(code, 2, "two of four are no quorum: {out}");
    let asked = nodes[0].asked.lock().unwrap().iter().filter(|path| *path == "/v1/consensus").count();
    assert_eq!(asked, 1, "the same address is asked once");
    assert_eq!(out.lines().filter(|line| line.contains("a0a0a0a0")).count(), 1, "{out}");
    // Another address of the same node is another row, and no second voice.
    let again = Node::serve(consensus(0, 7, &json!([])));
    let (code, out, _) = status(&[&first, &again.api(), &other, "127.0.0.1:1"], &[]);
    assert_eq!(code, 2, "{out}");
}

#[test]
fn no_node_can_say_that_more_must_agree_than_there_are() {
    let mut nodes: Vec<Node> = (0..3).map(|seat| Node::serve(consensus(seat, 7, &json!([])))).collect();
    let why = json!([{ "code": "no_progress", "blocks": true, "text": "woe" }]);
    let mut liar = consensus(3, 7, &why);
    liar["quorum"] = json!(1_000_000);
    nodes.push(Node::serve(liar));
    let apis: Vec<String> = nodes.iter().map(Node::api).collect();
    let asked: Vec<&str> = apis.iter().map(String::as_str).collect();
    let (code, out, _) = status(&asked, &[]);
    assert!(code == 3 && out.contains("3 of 4 replicas take part") && out.contains("It advances."), "{out}");
}

#[test]
fn an_answer_without_end_is_given_up_before_it_fills_the_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let sent = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // An answer before the question is refused for that.
        let mut asked = [0; 4096];
        let _ = stream.read(&mut asked).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n\"").unwrap();
        let part = vec![b'a'; 1 << 16];
        (0..).take_while(|_| stream.write_all(&part).is_ok()).count() << 16
    });
    let (code, out, _) = status(&[&address], &[]);
    assert!(code == 2 && out.contains("answers more than 4194304 bytes"), "{out}");
    assert!(sent.join().unwrap() < 64 << 20, "the rest is not read");
}

#[test]
fn a_node_with_very_many_reasons_is_told_in_short() {
    let reason = |at: u32| json!({ "code": format!("code{at}_"), "blocks": true, "text": "" });
    let node = Node::serve(consensus(0, 7, &(0..50_000).map(reason).collect()));
    let (code, out, _) = status(&[&node.api()], &[]);
    assert_eq!((code, out.matches("(says node 0)").count()), (1, 64 + 1), "{}", out.len());
}
