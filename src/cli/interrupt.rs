//! Ctrl-C and SIGTERM, for commands that tidy up after themselves.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for Ctrl-C, or for SIGTERM.
pub(super) async fn interrupted() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    Ok(())
}
