//! Operations that admins signed.

use super::*;

#[actix_web::test]
async fn a_signed_operation_is_submitted_and_its_fate_told() {
    let running = Running::start();
    let submit = async |sequence| running.submit(&running.node.operation(sequence)).await;
    let (status, body) = submit(1).await;
    assert_eq!((status, &body["height"], &body["operation"]), (200, &9.into(), &2.into()));
    let (status, body) = submit(2).await;
    assert_eq!((status, detail(&body)), (409, "devices/iot is registered already"));
    assert_eq!(submit(3).await.0, 503);
    assert_eq!(submit(4).await.0, 504);
}

#[actix_web::test]
async fn an_operation_that_no_admin_signed_goes_no_further() {
    let running = Running::start();
    let mut operation = running.node.operation(1);
    operation.sequence = 2;
    assert_eq!(running.submit(&operation).await.0, 400);
    operation.network = NetworkId([9; 32]);
    let (status, body) = running.submit(&operation).await;
    assert!(status == 400 && detail(&body).contains("another network"), "{body}");
}
