//! What is on the ledger: genesis, blocks, records, bundles, clients, policies.

use super::*;

#[actix_web::test]
async fn the_genesis_that_is_shown_is_the_genesis_document() {
    let running = Running::start();
    let (_, body) = running.get("/v1/genesis").await;
    let genesis: Genesis = serde_json::from_value(body).unwrap();
    assert_eq!(genesis.network_id(), running.node.genesis.network_id());
    assert_eq!(running.get("/v1/time").await.1["server_time"], 42);
}

#[actix_web::test]
async fn only_certified_blocks_are_shown_page_by_page() {
    let running = Running::start();
    let heights = |body: &Json| -> Vec<u64> {
        body["blocks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|block| block["header"]["height"].as_u64().unwrap())
            .collect()
    };
    let (_, body) = running.get("/v1/blocks").await;
    assert_eq!((heights(&body), &body["next"]), (vec![1, 2, 3, 4], &Json::Null));
    let (_, body) = running.get("/v1/blocks?limit=2").await;
    assert_eq!((heights(&body), &body["next"]), (vec![3, 4], &Json::Null));
    let (_, body) = running.get("/v1/blocks?from=1&limit=2").await;
    assert_eq!((heights(&body), &body["next"]), (vec![1, 2], &Json::from(3)));
    let (_, body) = running.get("/v1/blocks?from=9").await;
    assert_eq!((heights(&body), &body["next"]), (vec![], &Json::Null));
    assert_eq!(running.get("/v1/blocks/5").await.0, 404);
}

#[actix_web::test]
async fn certified_blocks_are_given_byte_for_byte_and_page_by_page() {
    let running = Running::start();
    let get = async |path: &str| {
        let answer = running.http.get(running.url(path)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["content-type"] == BUNDLE), (200, true));
        decode_certified(&answer.bytes().await.unwrap()).unwrap()
    };
    const BUNDLE: &str = "application/octet-stream";
    let blocks = get("/v1/certified-blocks?from=1").await;
    assert_eq!(blocks.len(), 4, "no block without a certificate");
    for ((block, certificate), height) in blocks.into_iter().zip(1..) {
        assert_eq!(Some(block), running.node.block(Height(height)).unwrap());
        assert_eq!(certificate, running.node.certificate(Height(height)).unwrap());
    }
    assert_eq!(get("/v1/certified-blocks?from=2&limit=2").await.len(), 2);
    assert_eq!(get("/v1/certified-blocks?from=5").await.len(), 0);
    assert_eq!(get("/v1/certified-blocks?from=18446744073709551615").await.len(), 0);
    for bad in ["", "?from=x", "?from=1&limit=0", "?from=1&limit=99999999", "?from=1&to=2"] {
        assert_eq!(running.get(&format!("/v1/certified-blocks{bad}")).await.0, 400, "{bad}");
    }
}

#[test]
fn what_is_no_list_of_certified_blocks_is_refused() {
    for bad in [&[0_u8, 0, 0][..], &[0, 0, 0, 9, 1], &[0, 0, 0, 1, 7], &[0xff; 8]] {
        assert!(decode_certified(bad).is_err(), "{bad:?}");
    }
}

#[actix_web::test]
async fn a_block_is_shown_with_its_operations_and_who_signed_it() {
    let running = Running::start();
    let (status, body) = running.get("/v1/blocks/3").await;
    assert_eq!(status, 200);
    assert_eq!(body["operations"][0]["kind"], "admin");
    assert_eq!(body["operations"][0]["action"]["action"], "register_client");
    assert_eq!(body["certificate"]["signatures"][0]["node"], NodeId([7; 32]).to_string());
}

#[actix_web::test]
async fn records_are_searched_by_every_parameter() {
    let running = Running::start();
    let path = "/v1/records?client=devices/iot&device=th%2001&from=2026-01-01T00:00:00Z&limit=7&cursor=";
    let cursor = "0a".repeat(RecordKey::LEN);
    let (status, body) = running.get(&format!("{path}{cursor}")).await;
    assert_eq!(status, 200, "{body}");
    let record: RecordJson = serde_json::from_value(body["records"][0].clone()).unwrap();
    assert_eq!((record.client.as_str(), record.item.device.as_str()), ("devices/iot", "th 01"));
    assert_eq!((record.event_time, record.item.num), (Timestamp(1_767_225_600_000), 7));
    assert_eq!((record.item.value, record.bundle.as_str()), (36.5.into(), "/v1/records/3/0/bundle"));
    assert_eq!(body["next"], cursor);
}

#[actix_web::test]
async fn a_bundle_is_served_as_its_bytes() {
    let running = Running::start();
    let response = running.http.get(running.url("/v1/records/3/0/bundle")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.unwrap().as_ref(), b"LMQPROOF");
    assert_eq!(running.get("/v1/records/3/1/bundle").await.0, 404);
}

#[actix_web::test]
async fn clients_are_listed_and_found() {
    let running = Running::start();
    let (_, body) = running.get("/v1/clients").await;
    assert_eq!(body["clients"][0]["client"], "devices/iot");
    assert_eq!(running.get("/v1/clients/devices/iot").await.1["highest_seq"], 3);
    assert_eq!(running.get("/v1/clients/devices/other").await.0, 404);
    assert_eq!(running.get("/v1/clients/verified/x").await.0, 400);
}

#[actix_web::test]
async fn policies_are_told_with_who_set_them_and_not_before_a_quorum_certified_it() {
    let running = Running::start();
    let (status, told) = running.get("/v1/policies").await;
    assert_eq!(status, 200, "{told}");
    let current = &told["current"];
    assert_eq!(
        (&current["version"], &current["height"], &current["operation"]),
        (&1.into(), &4.into(), &1.into())
    );
    assert_eq!((&current["time"], &current["quotas"][0]["max_items"]), (&4.into(), &4.into()));
    assert_eq!(current["admin"], running.node.admin.public().to_string());
    assert_eq!((&told["history"], &told["next"]), (&serde_json::json!([current]), &Json::Null));
    assert_eq!(running.get("/v1/policies/1").await.1, *current);
    let (_, genesis) = running.get("/v1/policies/0").await;
    assert_eq!(
        (&genesis["version"], &genesis["rules"], &genesis["admin"]),
        (&0.into(), &Json::Array(vec![]), &Json::Null)
    );
    assert_eq!(running.get("/v1/policies?before=1").await.1["history"], Json::Array(vec![]));
    for (path, status) in [
        ("/v1/policies/2", 404),
        ("/v1/policies/x", 400),
        ("/v1/policies?limit=0", 400),
        ("/v1/policies?after=1", 400),
    ] {
        assert_eq!(running.get(path).await.0, status, "{path}");
    }
}
