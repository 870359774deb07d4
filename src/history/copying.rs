//! Copying files so that whoever wants the program to end need not wait for the last byte.
//!
//! A history may have many gigabytes. It is copied in pieces, off the threads that wait for signals; between two
//! pieces the copy looks whether it is still wanted.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What is copied between two looks: some milliseconds of a disk.
const PIECE: u64 = 8 << 20;

/// Somebody wants the work to end, and what it made to be gone.
#[derive(Debug, Clone, Default)]
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// From here on it stops.
    pub fn stop(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it may go on.
    ///
    /// # Errors
    /// It is to stop.
    pub fn check(&self) -> io::Result<()> {
        if self.0.load(Relaxed) { Err(io::Error::other("it was interrupted")) } else { Ok(()) }
    }

    /// Copies the bytes of a file to a new one.
    ///
    /// # Errors
    /// One of the files cannot be used, or it is to stop.
    pub fn copy(&self, from: &Path, to: &Path) -> io::Result<()> {
        let to = File::options().write(true).create_new(true).open(to);
        self.pieces(File::open(from)?, to?)
    }

    fn pieces(&self, from: impl Read, mut to: impl Write) -> io::Result<()> {
        let mut from = from.take(PIECE);
        loop {
            self.check()?;
            if io::copy(&mut from, &mut to)? < PIECE {
                return Ok(());
            }
            from.set_limit(PIECE);
        }
    }
}

/// Stops the work if it is no longer waited for.
#[derive(Debug, Default)]
struct Guard(Stopping);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Does work that may copy files on a thread of its own; it stops when this future is dropped.
pub(super) async fn unhurried<T: Send + 'static>(
    work: impl FnOnce(&Stopping) -> T + Send + 'static,
) -> io::Result<T> {
    let guard = Guard::default();
    let stopping = guard.0.clone();
    let done = tokio::task::spawn_blocking(move || work(&stopping)).await;
    done.map_err(|error| io::Error::new(ErrorKind::Interrupted, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    /// Bytes without end; somebody loses patience after some.
    struct Endless(Stopping, u64);

    impl Read for Endless {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.1 += to.len() as u64;
            if self.1 > 3 * PIECE {
                self.0.stop();
            }
            Ok(to.len())
        }
    }

    #[test]
    fn a_copy_ends_within_a_piece_when_it_is_to_stop() {
        let stopping = Stopping::default();
        let mut endless = Endless(stopping.clone(), 0);
        stopping.pieces(&mut endless, io::sink()).unwrap_err();
        assert!(endless.1 <= 5 * PIECE, "{}", endless.1);
    }

    #[test]
    fn a_file_of_several_pieces_is_copied_whole_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let bytes: Vec<u8> = (0..2 * PIECE + 5).map(|at| (at % 251) as u8).collect();
        fs::write(&from, &bytes).unwrap();
        Stopping::default().copy(&from, &to).unwrap();
        assert!(fs::read(&to).unwrap() == bytes);
        assert_eq!(Stopping::default().copy(&from, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_told_to_stop() {
        let (began, begins) = tokio::sync::oneshot::channel();
        let (ended, ends) = tokio::sync::oneshot::channel();
        let work = unhurried(move |stopping| {
            began.send(()).unwrap();
            while stopping.check().is_ok() {
                std::thread::yield_now();
            }
            ended.send(()).unwrap();
        });
        tokio::select! {
            _ = work => panic!("it waits to be stopped"),
            begun = begins => begun.unwrap(),
        }
        ends.await.unwrap();
    }
}
