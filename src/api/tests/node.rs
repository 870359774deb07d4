//! The node itself: consensus and evidence.

use super::*;

#[actix_web::test]
async fn evidence_is_listed_page_by_page_and_served_as_its_bytes() {
    let running = Running::start();
    let (status, body) = running.get("/v1/evidence").await;
    assert_eq!((status, body["evidence"].as_array().unwrap().len(), &body["next"]), (200, 3, &Json::Null));
    let id = Hash([1; 32]).to_string();
    let expected = serde_json::json!({
        "id": id, "node": NodeId([7; 32]), "replica": 0, "kind": "checkpoint", "view": null, "sequence": 1,
        "seen": 1, "bytes": 3, "file": format!("/v1/evidence/{id}"),
    });
    assert_eq!(body["evidence"][0], expected);
    let mut query = "limit=2".to_owned();
    let mut seen = Vec::new();
    loop {
        let (_, body) = running.get(&format!("/v1/evidence?{query}")).await;
        let page: EvidenceListJson = serde_json::from_value(body).unwrap();
        seen.extend(page.evidence.iter().map(|piece| piece.seen.0));
        let Some(next) = page.next else { break };
        query = format!("limit=2&cursor={next}");
    }
    assert_eq!(seen, [1, 2, 3]);
    let response = running.http.get(running.url(&format!("/v1/evidence/{id}"))).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    assert!(response.headers()["content-disposition"].to_str().unwrap().contains(".lmqevidence"));
    assert_eq!(response.bytes().await.unwrap().as_ref(), [1; 3]);
    let (status, body) = running.get(&format!("/v1/evidence/{}", Hash([9; 32]))).await;
    assert!(status == 404 && detail(&body).contains("another one may have it"), "{body}");
    assert_eq!(running.get(&format!("/v1/evidence/{}", Hash([66; 32]))).await.0, 500);
}

#[actix_web::test]
async fn consensus_is_shown_with_the_names_that_the_page_gives() {
    let running = Running::start();
    let (status, body) = running.get("/v1/consensus").await;
    assert_eq!((status, &body["view"], &body["high_watermark"]), (200, &2.into(), &259.into()));
    assert_eq!((&body["view_change"], &body["silent"]["until"]), (&Json::Null, &Json::Null));
    assert_eq!(body["why"], serde_json::json!([{"code": "x", "blocks": false, "text": "y"}]));
    let page = include_str!("../../../docs/API.md");
    for name in body.as_object().unwrap().keys() {
        assert!(page.contains(&format!("`{name}`")), "docs/API.md lacks {name} of /v1/consensus");
    }
    for code in crate::pbft::diagnosis::Code::ALL {
        assert!(page.contains(&format!("| `{}` |", code.code())), "docs/API.md lacks {}", code.code());
    }
}
