//! The routes: each checks its input, asks the node, and answers.

use actix_web::error::{JsonPayloadError, PathError, QueryPayloadError};
use actix_web::http::header;
use actix_web::web::{self, Data, Json, Path, Query, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, Resource, ResponseError as _, Route};
use serde_json::json;

use super::answer::{Answer, BUNDLE_MEDIA_TYPE, read};
use super::evidence;
use super::json::{BlockJson, BlockSummaryJson, BlocksJson, RecordsJson};
use super::policies;
use super::query::{self, BlocksQuery, ClientsQuery, RecordsQuery};
use super::view::{ClientPage, ClientView, Status, Submitted, ViewError};
use super::{Context, Problem};
use crate::config::ApiConfig;
use crate::ledger::{AdminOperation, Genesis};
use crate::metrics;
use crate::types::{ClientId, Height};
use crate::wording;

/// The route that waits for an operation to be final.
pub(super) const OPERATIONS: &str = "/v1/operations";

/// Adds all routes.
pub(super) fn configure(app: &mut ServiceConfig, limits: &ApiConfig) {
    let max_body = usize::try_from(limits.max_request_bytes).unwrap_or(usize::MAX);
    app.app_data(web::PathConfig::default().error_handler(|error, request| bad_path(&error, request).into()))
        .app_data(
            web::QueryConfig::default().error_handler(|error, request| bad_query(&error, request).into()),
        )
        .app_data(
            web::JsonConfig::default().limit(max_body).error_handler(|error, _| bad_json(&error).into()),
        )
        .service(resource("/livez", web::get().to(livez)))
        .service(resource("/readyz", web::get().to(readyz)))
        .service(resource("/metrics", web::get().to(render_metrics)))
        .service(resource("/v1/status", web::get().to(status)))
        .service(resource("/v1/consensus", web::get().to(super::consensus::consensus)))
        .service(resource("/v1/time", web::get().to(time)))
        .service(resource("/v1/genesis", web::get().to(genesis)))
        .service(resource("/v1/blocks", web::get().to(blocks)))
        .service(resource("/v1/blocks/{height}", web::get().to(block)))
        .service(resource("/v1/certified-blocks", web::get().to(super::certified::certified_blocks)))
        .service(resource("/v1/records", web::get().to(records)))
        .service(resource("/v1/records/{height}/{operation}/bundle", web::get().to(bundle)))
        .service(resource("/v1/clients", web::get().to(clients)))
        .service(resource("/v1/clients/{group}/{name}", web::get().to(client)))
        .service(resource("/v1/policies", web::get().to(policies::list)))
        .service(resource("/v1/policies/{version}", web::get().to(policies::version)))
        .service(resource("/v1/evidence", web::get().to(evidence::list)))
        .service(resource("/v1/evidence/{id}", web::get().to(evidence::file)))
        .service(
            web::resource(OPERATIONS)
                .route(web::post().to(submit))
                .default_service(web::to(|| async { not_allowed("POST") })),
        )
        .default_service(web::to(no_route));
}

/// Adds what the second server has.
pub(super) fn configure_probes(app: &mut ServiceConfig) {
    app.service(resource("/livez", web::get().to(livez)))
        .service(resource("/readyz", web::get().to(readyz)))
        .service(resource("/metrics", web::get().to(render_metrics)))
        .default_service(web::to(no_route));
}

fn resource(path: &str, route: Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(|| async { not_allowed("GET") }))
}

async fn livez(context: Data<Context>) -> Result<&'static str, Problem> {
    context.node.liveness().map(|()| "ok\n").map_err(Problem::unavailable)
}

async fn readyz(context: Data<Context>) -> Result<&'static str, Problem> {
    context.node.readiness().map(|()| "ok\n").map_err(Problem::unavailable)
}

async fn render_metrics(context: Data<Context>) -> Result<HttpResponse, Problem> {
    let text = context.metrics.render().map_err(|error| {
        tracing::error!(%error, "the metrics cannot be shown");
        Problem::internal()
    })?;
    Ok(HttpResponse::Ok().content_type(metrics::CONTENT_TYPE).body(text))
}

async fn status(context: Data<Context>) -> Answer<Status> {
    Ok(Json(context.node.status().await?))
}

async fn time(context: Data<Context>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "server_time": context.node.now() }))
}

async fn genesis(context: Data<Context>) -> Json<Genesis> {
    Json(context.node.genesis().clone())
}

async fn blocks(context: Data<Context>, query: Query<BlocksQuery>) -> Answer<BlocksJson> {
    let limit = query::limit(query.limit, context.limits.max_page)?;
    let from = query.from;
    read(&context, move |node| {
        let last = node.certified_height().0;
        let span = u64::try_from(limit).unwrap_or(u64::MAX);
        let first = from.map_or(last.saturating_sub(span - 1), |from| from.0).max(1);
        let end = last.min(first.saturating_add(span - 1));
        let mut blocks = Vec::new();
        for height in first..=end {
            if let Some(header) = node.header(Height(height))? {
                blocks.push(BlockSummaryJson { hash: header.hash(), header });
            }
        }
        Ok(BlocksJson { blocks, next: (end < last && first <= end).then_some(Height(end + 1)) })
    })
    .await
    .map(Json)
}

async fn block(context: Data<Context>, height: Path<Height>) -> Result<HttpResponse, Problem> {
    let height = height.into_inner();
    let found = read(&context, move |node| {
        if height > node.certified_height() {
            return Ok(None);
        }
        let Some(block) = node.block(height)? else { return Ok(None) };
        let damaged = || ViewError::Failed(format!("block {height} is damaged"));
        let block = BlockJson::new(block, node.certificate(height)?, &node.genesis().replicas);
        // Written here, within the limit on reads: a large block takes many times its size on the way.
        serde_json::to_vec(&block.ok_or_else(damaged)?).map(Some).map_err(|_| damaged())
    })
    .await?;
    let json = found.ok_or_else(|| Problem::not_found(format!("there is no block {height} (yet)")))?;
    Ok(HttpResponse::Ok().content_type(header::ContentType::json()).body(json))
}

async fn records(context: Data<Context>, query: Query<RecordsQuery>) -> Answer<RecordsJson> {
    let query = query.into_inner().parse(context.limits.max_page)?;
    read(&context, move |node| node.records(&query)).await.map(|page| Json(page.into()))
}

async fn bundle(context: Data<Context>, place: Path<(Height, u32)>) -> Result<HttpResponse, Problem> {
    let (height, operation) = place.into_inner();
    let found = read(&context, move |node| node.bundle(height, operation)).await?;
    let bytes = found.ok_or_else(|| {
        Problem::not_found(format!("block {height} has no certified write operation {operation} (yet)"))
    })?;
    let disposition = format!("attachment; filename=\"{height}-{operation}.lmqproof\"");
    Ok(HttpResponse::Ok()
        .content_type(BUNDLE_MEDIA_TYPE)
        .insert_header((header::CONTENT_DISPOSITION, disposition))
        .body(bytes))
}

async fn clients(context: Data<Context>, query: Query<ClientsQuery>) -> Answer<ClientPage> {
    let query = query.into_inner();
    let limit = query::limit(query.limit, context.limits.max_page)?;
    Ok(Json(context.node.clients(query.after, limit).await?))
}

async fn client(context: Data<Context>, name: Path<(String, String)>) -> Answer<ClientView> {
    let (group, name) = name.into_inner();
    let id =
        ClientId::new(format!("{group}/{name}")).map_err(|error| Problem::bad_request(error.to_string()))?;
    let found = context.node.client(&id).await?;
    found.map(Json).ok_or_else(|| Problem::not_found(format!("{id} was never registered")))
}

async fn submit(context: Data<Context>, operation: Json<AdminOperation>) -> Answer<Submitted> {
    let operation = operation.into_inner();
    // Checked here too, so that nothing that is not signed goes further than this line.
    operation
        .verify(&context.node.genesis().network_id())
        .map_err(|error| Problem::bad_request(error.to_string()))?;
    Ok(Json(context.node.submit(operation).await?))
}

async fn no_route(request: HttpRequest) -> HttpResponse {
    Problem::not_found(format!("there is no route {}", request.path())).error_response()
}

fn not_allowed(allowed: &str) -> HttpResponse {
    let mut response = Problem::method_not_allowed(allowed).error_response();
    if let Ok(value) = header::HeaderValue::from_str(allowed) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

fn bad_path(error: &PathError, request: &HttpRequest) -> Problem {
    let PathError::Deserialize(error) = error else {
        return Problem::bad_request(format!("in the path {}: {error}", request.path()));
    };
    let told = error.to_string();
    // Of a number in its words: can not parse "x" to a u64.
    match told.strip_prefix("can not parse ").and_then(|rest| rest.split_once(" to a ")) {
        Some((what, _)) => {
            Problem::bad_request(format!("in the path: {what} stands where a whole number belongs"))
        }
        None => Problem::bad_request(format!("in the path: {}", wording::of_serde(&told))),
    }
}

fn bad_query(error: &QueryPayloadError, request: &HttpRequest) -> Problem {
    let QueryPayloadError::Deserialize(error) = error else {
        return Problem::bad_request(format!("in the query: {error}"));
    };
    let told = error.to_string();
    // What is no number is told without its name.
    let is_number = told.contains("digit") || told.contains("number too") || told.contains("empty string");
    let takes_number = |name: &str| {
        matches!(name, "limit" | "num") || name == "from" && !request.path().ends_with("/records")
    };
    let query = url::form_urlencoded::parse(request.query_string().as_bytes());
    let mut wrong = query.filter(|(name, value)| takes_number(name) && value.parse::<u32>().is_err());
    let name = wrong.next().filter(|_| is_number).map(|(name, _)| format!("{name}: ")).unwrap_or_default();
    Problem::bad_request(format!("in the query: {name}{}", wording::of_serde(&told)))
}

fn bad_json(error: &JsonPayloadError) -> Problem {
    match error {
        JsonPayloadError::Overflow { limit } | JsonPayloadError::OverflowKnownLength { limit, .. } => {
            Problem::too_large(format!("the body may have at most {limit} bytes"))
        }
        JsonPayloadError::ContentType => Problem::not_json(),
        JsonPayloadError::Deserialize(error) => {
            Problem::bad_request(format!("in the body: {}", wording::of_json(error)))
        }
        _ => Problem::bad_request("the body did not come whole: send it again"),
    }
}
