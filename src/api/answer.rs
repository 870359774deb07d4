//! What the routes' answers have in common.

use actix_web::web::{self, Json};

use super::view::{NodeView, ViewError};
use super::{Context, Problem};

/// The media type of proof bundles and evidence.
pub(super) const BUNDLE_MEDIA_TYPE: &str = "application/octet-stream";

pub(super) type Answer<T> = Result<Json<T>, Problem>;

/// Runs a read that may block, within the limit on such reads.
pub(super) async fn read<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce(&dyn NodeView) -> Result<T, ViewError> + Send + 'static,
) -> Result<T, Problem> {
    let stopping = |_| Problem::from(ViewError::Stopping);
    let permit = context.reads.clone().acquire_owned().await.map_err(|_| ViewError::Stopping)?;
    let node = context.node.clone();
    let result = web::block(move || {
        // Held until the work is done, even if the request has timed out by then.
        let _permit = permit;
        work(&*node)
    });
    Ok(result.await.map_err(stopping)??)
}
