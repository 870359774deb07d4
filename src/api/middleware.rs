//! Around every request: a limit on its time, and its metrics.

use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::{Error, web};

use super::{Context, Problem, routes};

/// The label of requests to no route: paths are a stranger's choice and never a label.
const NO_ROUTE: &str = "none";

/// Answers within the time that the settings give, and counts.
pub(super) async fn observe(
    context: web::Data<Context>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let route = request.match_pattern().unwrap_or_else(|| NO_ROUTE.to_owned());
    let started = context.clock.monotonic();
    let response = match tokio::time::timeout(time_limit(&context, &route), next.call(request)).await {
        Ok(response) => response,
        Err(_) => Err(Problem::timeout("the request was not read and answered in time; ask for less").into()),
    };
    let status = match &response {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    let took = context.clock.monotonic().saturating_sub(started);
    let http = &context.metrics.http;
    http.requests.with_label_values(&[route.as_str(), status.as_str()]).inc();
    http.request_ms.with_label_values(&[route.as_str()]).observe(took.as_secs_f64() * 1000.0);
    response
}

fn time_limit(context: &Context, route: &str) -> Duration {
    let limits = &context.limits;
    match route {
        routes::OPERATIONS => limits.request_timeout + limits.operation_timeout,
        _ => limits.request_timeout,
    }
}
