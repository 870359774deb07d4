//! How it serves: probes, limits, hostile and slow clients, its port.

use super::*;

#[actix_web::test]
async fn readiness_follows_the_node_and_liveness_does_not() {
    let running = Running::start();
    let ready = |path: &'static str| running.http.get(running.url(path)).send();
    assert_eq!(ready("/readyz").await.unwrap().status(), 200);
    running.node.ready.store(false, Ordering::SeqCst);
    let (status, body) = running.get("/readyz").await;
    assert_eq!((status, detail(&body)), (503, "0 of 3 replicas connected"));
    assert_eq!(ready("/livez").await.unwrap().status(), 200);
}

#[actix_web::test]
async fn wrong_requests_get_problem_details_that_say_what_is_wrong() {
    let running = Running::start();
    for (path, status, says) in [
        ("/nowhere", 404, "/nowhere"),
        ("/v1/blocks/x", 400, "in the path: \"x\" stands where a whole number belongs"),
        ("/v1/policies/-1", 400, "in the path: \"-1\" stands where a whole number belongs"),
        ("/v1/blocks?limit=x", 400, "in the query: limit: a whole number, in digits alone, belongs there"),
        ("/v1/records?from=0&num=99999999999", 400, "in the query: num: the number is too large"),
        ("/v1/blocks?limt=1", 400, "unknown field `limt`, expected `from` or `limit`; did you mean `limit`?"),
        ("/v1/blocks?limit=0", 400, "limit is 0, but must be 1 to 1000"),
        ("/v1/blocks?limit=100000", 400, "1 to 1000"),
        ("/v1/blocks?form=1", 400, "form"),
        ("/v1/records?client=nobody", 400, "group/name"),
        ("/v1/records?from=yesterday", 400, "RFC 3339"),
        ("/v1/records?cursor=xyz", 400, "cursor"),
        ("/v1/records?num=666", 500, "log"),
        ("/v1/evidence?limit=0", 400, "limit is 0"),
        ("/v1/evidence?cursor=0000000000000001", 400, "cursor"),
        ("/v1/evidence?after=x", 400, "after"),
        ("/v1/evidence/07", 400, "64 hex digits"),
        ("/v1/status", 503, "stopping"),
        ("/v1/operations", 405, "POST"),
    ] {
        let (found, body) = running.get(path).await;
        assert_eq!(found, status, "{path}: {body}");
        assert!(detail(&body).contains(says), "{path}: {body}");
    }
    let posted = running.http.post(running.url("/v1/time")).send().await.unwrap();
    assert_eq!(posted.headers().get("allow").unwrap(), "GET");
    assert_eq!(answer(posted).await.0, 405);
}

#[actix_web::test]
async fn bodies_are_limited_and_must_be_json() {
    let running = Running::start();
    let post = |body: String, media_type: &'static str| {
        let request = running.http.post(running.url("/v1/operations"));
        async move { answer(request.header("content-type", media_type).body(body).send().await.unwrap()).await }
    };
    assert_eq!(post("x".repeat(65 * 1024), "application/json").await.0, 413);
    assert_eq!(post("{}".into(), "text/plain").await.0, 415);
    let (status, body) = post("{".into(), "application/json").await;
    assert_eq!((status, detail(&body)), (400, "in the body: it ends too early, in line 1"));
    let (_, body) = post("{\"version\": true}".into(), "application/json").await;
    let told = detail(&body);
    assert!(told.starts_with("in the body: line 1: ") && !told.contains("deserialize"), "{told}");
    assert_eq!(post("[".repeat(60_000), "application/json").await.0, 400);
}

#[actix_web::test]
async fn requests_are_counted_by_route_and_strangers_make_no_series() {
    let running = Running::start();
    for at in 0..20 {
        running.get(&format!("/stranger/{at}")).await;
        running.get(&format!("/v1/blocks/{at}")).await;
    }
    let text = running.http.get(running.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains(r#"ledgermq_http_requests_total{route="none",status="404"} 20"#), "{text}");
    assert!(text.contains(r#"ledgermq_http_requests_total{route="/v1/blocks/{height}",status="200"} 4"#));
}

/// An answer to a probe, or none within `patience`.
async fn probe(http: &reqwest::Client, address: SocketAddr, path: &str, patience: Duration) -> Option<u16> {
    let request = http.get(format!("http://{address}{path}")).timeout(patience).send();
    request.await.ok().map(|answer| answer.status().as_u16())
}

#[actix_web::test]
async fn who_takes_all_connections_of_the_api_keeps_no_probe_waiting() {
    let settings = ApiConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        probes_listen: Some(([127, 0, 0, 1], 0).into()),
        probes_max_connections: 2,
        max_connections: 4,
        ..ApiConfig::default()
    };
    let (node, metrics) = (FakeNode::new(), Metrics::new().unwrap());
    let api = Api::start(&settings, node.clone(), metrics.clone()).unwrap();
    let probes = Api::start_probes(&settings, node, metrics).unwrap().unwrap();
    let taken: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(api.local_addr()).unwrap()).collect();
    let http = reqwest::Client::new();
    let short = Duration::from_secs(1);
    assert_eq!(probe(&http, api.local_addr(), "/livez", short).await, None, "all places are taken");
    let long = Duration::from_secs(30);
    for _ in 0..10 {
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(probe(&http, probes.local_addr(), path, long).await, Some(200), "{path}");
        }
    }
    assert_eq!(
        probe(&http, probes.local_addr(), "/v1/records", long).await,
        Some(404),
        "nothing else is there"
    );
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(probes.local_addr()).unwrap()).collect();
    assert_eq!(
        probe(&http, probes.local_addr(), "/livez", long).await,
        Some(200),
        "the silent are closed soon"
    );
    drop((taken, silent));
    probes.stop().await;
    api.stop().await;
}

#[actix_web::test]
async fn without_its_setting_there_is_no_second_server() {
    let settings = ApiConfig::default();
    assert!(Api::start_probes(&settings, FakeNode::new(), Metrics::new().unwrap()).unwrap().is_none());
}

#[actix_web::test]
async fn a_request_that_is_not_sent_whole_is_ended() {
    let running = Running::with(|settings| settings.request_timeout = Duration::from_millis(200));
    let address = running.api.local_addr();
    let answer = web::block(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = "GET /v1/time HTTP/1.1\r\nHost: x\r\nX-Never-Ending: ";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.await.unwrap().contains("408"));
}

#[actix_web::test]
async fn garbage_on_the_port_harms_nobody() {
    let running = Running::start();
    let address = running.api.local_addr();
    let garbage: Vec<u8> =
        (0..50_000_u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let sent = web::block(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The server may close before all of it is sent.
        let _ = stream.write_all(&garbage);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    sent.await.unwrap();
    assert_eq!(running.get("/v1/time").await.0, 200);
}

#[actix_web::test]
async fn a_port_in_use_is_an_error_and_a_stopped_server_frees_it() {
    let running = Running::start();
    let settings = ApiConfig { listen: running.api.local_addr(), ..ApiConfig::default() };
    let start = || Api::start(&settings, running.node.clone(), Metrics::new().unwrap());
    assert_eq!(start().unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    running.api.stop().await;
    assert_eq!(running.api.ended().await, "it was stopped");
    assert!(start().is_ok());
}

#[actix_web::test]
async fn who_lists_evidence_while_a_piece_is_written_keeps_no_probe_waiting() {
    let running = Running::start();
    running.node.disk.store(1, Ordering::SeqCst);
    let list = actix_web::rt::spawn(running.http.get(running.url("/v1/evidence")).send());
    while running.node.disk.load(Ordering::SeqCst) != 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let probe = running.http.get(running.url("/livez")).timeout(Duration::from_secs(5)).send().await;
    running.node.disk.store(0, Ordering::SeqCst);
    assert_eq!(probe.unwrap().status(), 200);
    assert_eq!(list.await.unwrap().unwrap().status(), 200);
}
