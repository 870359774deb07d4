//! Secret keys in files: one line of hex, readable by their owner alone.
//!
//! | file | holds |
//! | --- | --- |
//! | `node.key`, `admin.key`, a client's key | the 32-byte Ed25519 seed (RFC 8032's private key) as 64 hex digits |
//! | `swarm.key` | libp2p's pre-shared key: `/key/swarm/psk/1.0.0/`, `/base16/`, 64 hex digits, a line each |
//!
//! A key is written once: to a new file with mode 0600, synced, and never over an old one. A key
//! that group or others may read is refused when it is read, with the command that mends it: a
//! secret that lay open may have been copied, and whoever runs a node should notice. One that is
//! root's may be readable by its group if the reader is somebody else, who could not read it
//! otherwise: so Kubernetes mounts a Secret for a pod with an `fsGroup`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use zeroize::Zeroizing;

use crate::crypto::{CryptoError, SecretKey, random_bytes};

/// Longer than any key file; whatever is longer is another file.
const MAX_KEY_FILE_BYTES: u64 = 1024;

/// The first two lines of a swarm key, as go-libp2p and rust-libp2p write them.
const SWARM_KEY_HEADER: &str = "/key/swarm/psk/1.0.0/\n/base16/\n";

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be opened or read.
    #[error("cannot read the key {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Somebody else may read the file.
    #[error(
        "the key {path} is open to group or others (mode {mode:04o}): run `chmod 600 {path}`, and \
         replace the key if somebody may have read it"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{path} is not a key file: expected {expected}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What a key file of this kind holds.
        expected: &'static str,
    },
    /// There is a file of that name already.
    #[error("{path} exists already, and a key is never overwritten: move it away or choose another name")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write the key {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// No key could be made.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// Makes a fresh Ed25519 key and writes it to `path`.
///
/// # Errors
/// [`KeyFileError`]: the file exists or cannot be written, or there is no randomness.
pub fn create(path: &Path) -> Result<SecretKey, KeyFileError> {
    let key = SecretKey::generate()?;
    write(path, &key)?;
    Ok(key)
}

/// Writes an Ed25519 key to a new file that only its owner may read.
///
/// # Errors
/// [`KeyFileError`]: the file exists or cannot be written.
pub fn write(path: &Path, key: &SecretKey) -> Result<(), KeyFileError> {
    write_new(path, &Zeroizing::new(format!("{}\n", Zeroizing::new(hex::encode(key.seed())).as_str())))
}

/// Reads an Ed25519 key.
///
/// # Errors
/// [`KeyFileError`]: no such file, open to others, or not a key.
pub fn read(path: &Path) -> Result<SecretKey, KeyFileError> {
    let expected = "64 hex digits, as `ledgermq init` and `ledgermq client new` write them";
    let seed = read_secret(path, expected, |text| parse_hex(text.trim()))?;
    Ok(SecretKey::from_seed(&seed))
}

/// Makes a fresh swarm key, the pre-shared key without which no stranger can connect to the nodes,
/// and writes it to `path`.
///
/// # Errors
/// [`KeyFileError`]: the file exists or cannot be written, or there is no randomness.
pub fn create_swarm_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let key = Zeroizing::new(random_bytes::<32>()?);
    let digits = Zeroizing::new(hex::encode(key.as_slice()));
    write_new(path, &Zeroizing::new(format!("{SWARM_KEY_HEADER}{}\n", digits.as_str())))?;
    Ok(key)
}

/// Reads a swarm key.
///
/// # Errors
/// [`KeyFileError`]: no such file, open to others, or not a swarm key.
pub fn read_swarm_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let expected = "the lines /key/swarm/psk/1.0.0/ and /base16/, then 64 hex digits";
    read_secret(path, expected, |text| {
        text.strip_prefix(SWARM_KEY_HEADER).and_then(|digits| parse_hex(digits.trim()))
    })
}

fn parse_hex(digits: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, bytes.as_mut_slice()).ok()?;
    Some(bytes)
}

/// What a file holds is looked at first: whoever names the wrong file has no use for advice about its mode.
fn read_secret<T>(
    path: &Path,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, KeyFileError> {
    let failed = |source| KeyFileError::Read { path: path.to_owned(), source };
    let malformed = || KeyFileError::Malformed { path: path.to_owned(), expected };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_file() || metadata.len() > MAX_KEY_FILE_BYTES {
        return Err(malformed());
    }
    let mut text = Zeroizing::new(String::new());
    match file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(malformed()),
        Err(source) => return Err(failed(source)),
    }
    let key = parse(&text).ok_or_else(malformed)?;
    if mode & too_open(metadata.uid(), geteuid().as_raw()) != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode });
    }
    Ok(key)
}

/// The permission bits that a key of this owner must not have when this user reads it.
const fn too_open(owner: u32, reader: u32) -> u32 {
    const ROOT: u32 = 0;
    if owner == ROOT && reader != ROOT { 0o037 } else { 0o077 }
}

fn write_new(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.to_owned() },
        _ => KeyFileError::Write { path: path.to_owned(), source },
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    // Half a key is worse than none: the next attempt would find the file in its way.
    written.or_else(|error| fs::remove_file(path).and(Err(error))).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_is_no_key_is_told_as_that_whoever_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("genesis.json");
        std::fs::write(&path, "{}").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Malformed { .. })));
        let key = SecretKey::from_seed(&[7; 32]);
        std::fs::write(&path, hex::encode(key.seed())).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Open { .. })), "a key that others may read");
    }

    #[test]
    fn a_key_that_was_written_is_read_back_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let key = create(&path).unwrap();
        assert_eq!(read(&path).unwrap().public(), key.public());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let key = create(&path).unwrap();
        assert!(matches!(create(&path), Err(KeyFileError::Exists { .. })));
        assert_eq!(read(&path).unwrap().public(), key.public());
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        create(&path).unwrap();
        for mode in [0o644, 0o640, 0o601, 0o620] {
            chmod(&path, mode);
            let error = read(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Open { .. }), "{mode:o}: {error}");
            assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
        chmod(&path, 0o400);
        assert!(read(&path).is_ok());
    }

    #[test]
    fn only_a_key_of_root_may_be_readable_by_the_group_of_another_reader() {
        let refused = |mode, owner, reader| mode & too_open(owner, reader) != 0;
        assert!(!refused(0o440, 0, 65532) && !refused(0o640, 0, 65532), "so a Secret is mounted");
        assert!(refused(0o444, 0, 65532) && refused(0o460, 0, 65532));
        assert!(refused(0o440, 0, 0) && refused(0o440, 65532, 65532) && refused(0o440, 1000, 65532));
    }

    #[test]
    fn whatever_is_not_a_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = "07".repeat(32);
        let bad: [&[u8]; 6] = [b"", b"07", &[0xff; 64], &[b'0'; 2000], &good.as_bytes()[1..], b"zz\n"];
        for (at, content) in bad.into_iter().enumerate() {
            let path = dir.path().join(at.to_string());
            fs::write(&path, content).unwrap();
            chmod(&path, 0o600);
            assert!(matches!(read(&path), Err(KeyFileError::Malformed { .. })), "{at}");
            assert!(matches!(read_swarm_key(&path), Err(KeyFileError::Malformed { .. })), "{at}");
        }
        assert!(matches!(read(dir.path()), Err(KeyFileError::Malformed { .. })));
        assert!(matches!(read(&dir.path().join("none")), Err(KeyFileError::Read { .. })));
    }

    #[test]
    fn a_swarm_key_is_in_the_form_that_libp2p_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.key");
        let key = create_swarm_key(&path).unwrap();
        assert_eq!(read_swarm_key(&path).unwrap(), key);
        let text = fs::read_to_string(&path).unwrap();
        let parsed: libp2p::pnet::PreSharedKey = text.parse().unwrap();
        assert_eq!(parsed, libp2p::pnet::PreSharedKey::new(*key));
    }
}
