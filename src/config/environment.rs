//! Settings from environment variables: `LEDGERMQ_SECTION__SETTING`.
//!
//! Each variable is a source of its own, so that an error can name it. Figment's provider for the
//! environment reads that of the process and nothing else; here the variables are an argument.

use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

use super::ENV_PREFIX;

/// One environment variable that is a setting.
pub(super) struct Override {
    variable: String,
    value: String,
}

/// The variables that are settings, by name, so that the order in which the process got them makes
/// no difference.
pub(super) fn overrides(variables: impl Iterator<Item = (String, String)>) -> impl Iterator<Item = Override> {
    let mut found: Vec<Override> = variables
        .filter(|(name, _)| name.len() > ENV_PREFIX.len() && name.starts_with(ENV_PREFIX))
        .map(|(variable, value)| Override { variable, value })
        .collect();
    found.sort_by(|a, b| a.variable.cmp(&b.variable));
    found.into_iter()
}

impl Provider for Override {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.variable.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let path = self.variable[ENV_PREFIX.len()..].to_lowercase().replace("__", ".");
        // Numbers, truth values and arrays as in TOML; whatever is none of these is a text.
        let Ok(value) = self.value.parse::<Value>();
        let dict = figment::util::nest(&path, value).into_dict().unwrap_or_default();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}
