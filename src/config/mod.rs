//! A node's settings: a TOML file, over which environment variables go.
//!
//! `LEDGERMQ_SECTION__SETTING` (two underscores between section and setting) is stronger than the
//! file, so that a container's environment can set what differs between pods:
//! `LEDGERMQ_MQTT__LISTEN=0.0.0.0:1883`, `LEDGERMQ_DATA_DIR=/data`. What neither names has a default
//! that is safe on its own: loopback addresses, bounded queues, nothing in clear. A setting that
//! does not exist is an error and never ignored, since a limit that was misspelt is no limit.
//!
//! Relative paths are relative to the directory that the file lies in. Every setting is described
//! in `docs/SETTINGS.md`; a test holds that page and this module together.

mod environment;
mod genesis;
mod sections;
mod validate;

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format as _, Toml};
use serde::{Deserialize, Serialize};

use crate::wording;

pub use genesis::{GenesisFileError, read_genesis, write_genesis};
pub use sections::{
    ApiConfig, ConsensusConfig, DatabaseUrl, HistoryConfig, LogConfig, LogFormat, MqttConfig, P2pConfig,
    PolicyConfig, StorageConfig, TransferConfig,
};

/// What the names of environment variables that are settings begin with.
pub const ENV_PREFIX: &str = "LEDGERMQ_";

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there, or may not be read.
    #[error("cannot read the settings {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Not TOML, an unknown setting, or a value of the wrong kind.
    #[error("in the settings {path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and with which setting.
        message: String,
    },
    /// A value out of its range.
    #[error("in the settings {path}: {setting} {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The setting, as `section.setting`.
        setting: &'static str,
        /// What is wrong with it and what it may be.
        problem: String,
    },
}

/// All settings of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps its log and its ledger.
    pub data_dir: PathBuf,
    /// The genesis document of the network.
    pub genesis: PathBuf,
    /// The node's key; only its owner may read the file.
    pub node_key: PathBuf,
    /// Where the mark is that says that the key has voted, if it cannot be beside the key.
    pub node_key_mark: Option<PathBuf>,
    /// Threads that serve connections: with none given half as many as there are processors, at least one.
    pub worker_threads: Option<u32>,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The embedded MQTT broker and the device protocol.
    pub mqtt: MqttConfig,
    /// The HTTP API.
    pub api: ApiConfig,
    /// The network between nodes.
    pub p2p: P2pConfig,
    /// Batching, re-sending and the request pool.
    pub consensus: ConsensusConfig,
    /// The log and the ledger on disk.
    pub storage: StorageConfig,
    /// The fetching of blocks, and the giving of them.
    pub transfer: TransferConfig,
    /// The database of all verified messages.
    pub history: HistoryConfig,
    /// The memory of what data items are judged against.
    pub policy: PolicyConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "data".into(),
            genesis: "genesis.json".into(),
            node_key: "node.key".into(),
            node_key_mark: None,
            worker_threads: None,
            log: LogConfig::default(),
            mqtt: MqttConfig::default(),
            api: ApiConfig::default(),
            p2p: P2pConfig::default(),
            consensus: ConsensusConfig::default(),
            storage: StorageConfig::default(),
            transfer: TransferConfig::default(),
            history: HistoryConfig::default(),
            policy: PolicyConfig::default(),
        }
    }
}

impl Config {
    /// Reads the settings from a file and the environment, and checks every value.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file and the setting.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        // Variables whose names or values are not UTF-8 cannot be settings.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::load_with(path, variables)
    }

    fn load_with(
        path: &Path,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        // Figment reads a missing file as an empty one; a wrong path must not start a default node.
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str::<toml::Table>(&text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            message: wording::of_toml(&text, &error),
        })?;
        let mut config: Self = environment::overrides(variables)
            .fold(Figment::from(Toml::string(&text)), Figment::merge)
            .extract()
            .map_err(|error| ConfigError::Malformed { path: path.to_owned(), message: describe(error) })?;
        config.resolve_paths(path.parent().unwrap_or(Path::new("")));
        match config.problem() {
            None => Ok(config),
            Some((setting, problem)) => Err(ConfigError::Invalid { path: path.to_owned(), setting, problem }),
        }
    }

    /// The settings as TOML, every one of them.
    ///
    /// # Errors
    /// Only if a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    fn resolve_paths(&mut self, base: &Path) {
        // Joining with an absolute path gives that path.
        self.data_dir = base.join(&self.data_dir);
        self.genesis = base.join(&self.genesis);
        self.node_key = base.join(&self.node_key);
        self.node_key_mark = self.node_key_mark.take().map(|path| base.join(path));
        self.p2p.swarm_key = self.p2p.swarm_key.take().map(|path| base.join(path));
    }
}

/// All errors of `error`, one a line, each with the setting's name as the user wrote it.
fn describe(error: figment::Error) -> String {
    let lines: Vec<String> = error
        .into_iter()
        .map(|error| {
            let origin = match &error.metadata {
                Some(of) if of.name.starts_with(ENV_PREFIX) => format!(" (set by {})", of.name),
                _ => String::new(),
            };
            match (error.path.is_empty(), &error.kind) {
                (_, figment::error::Kind::UnknownField(name, expected)) => {
                    let mut path = error.path.clone();
                    // Some deserializers put the unknown name into the path, others leave it out.
                    if path.last() != Some(name) {
                        path.push(name.clone());
                    }
                    let meant = wording::nearest(name, expected.iter().copied());
                    let meant = meant
                        .map(|meant| format!("did you mean {meant}? There"))
                        .unwrap_or_else(|| "there".to_owned());
                    format!(
                        "there is no setting {}{origin}; {meant} is {}",
                        path.join("."),
                        expected.join(", ")
                    )
                }
                (true, kind) => kind.to_string().trim_end().to_owned(),
                (false, kind) => {
                    let what = wording::of_serde(kind.to_string().trim_end());
                    format!("{}{origin}: {what}", error.path.join("."))
                }
            }
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;
