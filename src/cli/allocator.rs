//! The allocator's settings, which it reads from the environment before `main` begins.
//!
//! mimalloc gives memory back to the system as soon as it was freed, and the next message takes it
//! again, page by page, each cleared by the system: a tenth of a node's processor time under load. So a
//! node begins with an environment that says "later", by executing itself once more: the same process with the
//! same open files, before it has opened any of its own. Huge pages, which mimalloc asks for, are off: a node
//! touches a part of each only, and they made it a third larger. Whoever sets either variable keeps what he set.
//!
//! What was executed and how is what the system says (`/proc/self`), not what `main` was given: who starts the
//! program through the dynamic loader would otherwise have the loader execute the node's first argument. Where
//! it does not say (no `/proc`), or the program is gone or may not be executed, the node goes on without.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::{env, fs};

/// The settings: freed memory is given back after ten seconds; no transparent huge pages.
const SETTINGS: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "10000"), ("MIMALLOC_ALLOW_THP", "0")];

/// Executes this program again with the settings, unless it has them; if that fails, it goes on without.
///
/// # Errors
/// Why the allocator keeps its usual settings.
pub(super) fn settle() -> io::Result<()> {
    let missing: Vec<_> = SETTINGS.into_iter().filter(|(name, _)| env::var_os(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let started_with = words(&fs::read("/proc/self/environ")?);
    if missing.iter().any(|(name, _)| started_with.iter().any(|word| is_setting(word, name))) {
        // Again would be for ever.
        return Err(io::Error::other("something in this process took them out of its environment"));
    }
    let mut command_line = words(&fs::read("/proc/self/cmdline")?).into_iter();
    let name = command_line.next().ok_or(io::ErrorKind::UnexpectedEof)?;
    Err(Command::new(env::current_exe()?).arg0(name).args(command_line).envs(missing).exec())
}

/// What the system keeps of arguments and variables: each ends with a zero byte.
fn words(bytes: &[u8]) -> Vec<OsString> {
    let words = bytes.split_inclusive(|byte| *byte == 0);
    words.map(|word| OsString::from_vec(word.strip_suffix(&[0]).unwrap_or(word).to_vec())).collect()
}

fn is_setting(word: &OsString, name: &str) -> bool {
    word.as_encoded_bytes().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_stands_before_each_zero() {
        let read = |bytes: &[u8]| words(bytes).into_iter().map(OsString::into_vec).collect::<Vec<_>>();
        assert_eq!(read(b"a b\0\0\xff\0"), [&b"a b"[..], b"", b"\xff"]);
        assert_eq!(read(b"a\0b"), [b"a", b"b"]);
        assert!(read(b"").is_empty());
    }

    #[test]
    fn a_variable_is_known_by_its_whole_name() {
        let is = |word: &str| is_setting(&word.into(), "NAME");
        assert_eq!(
            ["NAME=", "NAME=1", "NAME", "NAMES=1", "XNAME=1"].map(is),
            [true, true, false, false, false]
        );
    }
}
