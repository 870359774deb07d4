//! The allocator's settings, which it reads from the environment before `main` begins.
//!
//! mimalloc gives memory back to the system as soon as it was freed, and the next message takes it
//! again, page by page, each cleared by the system: a tenth of a node's processor time under load. So a
//! node begins with an environment that says "later", by executing itself once more: the same process with the
//! same open files. Huge pages, which mimalloc asks for, are off: a node touches a part of each only, and
//! they made it a third larger. Whoever sets either variable keeps what he set.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The settings: freed memory is given back after ten seconds; no transparent huge pages.
const SETTINGS: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "10000"), ("MIMALLOC_ALLOW_THP", "0")];

/// Executes this program again with the settings, unless it has them; if that fails, it goes on without.
pub(super) fn settle() {
    let missing: Vec<_> = SETTINGS.into_iter().filter(|(name, _)| env::var_os(name).is_none()).collect();
    let (Ok(program), false) = (env::current_exe(), missing.is_empty()) else { return };
    let mut arguments = env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).envs(missing).exec();
    tracing::debug!(%error, "the allocator keeps its usual settings");
}
