//! Settings from files and the environment: defaults, overrides, and what is refused.

use std::time::Duration;

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    load_with(text, &[])
}

fn load_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    Config::load_with(&path, variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

fn message_of(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_gives_the_defaults_and_they_are_valid() {
    let config = load("").unwrap();
    assert_eq!(config.mqtt, MqttConfig::default());
    assert!(config.mqtt.listen.ip().is_loopback() && config.api.listen.ip().is_loopback());
}

#[test]
fn settings_survive_being_written_and_read() {
    let mut config = Config::default();
    config.mqtt.submit_timeout = Duration::from_millis(1234);
    config.p2p.bootstrap = vec!["/dns4/node-0/tcp/7000".parse().unwrap()];
    config.p2p.swarm_key = Some("/keys/swarm.key".into());
    config.data_dir = "/data".into();
    config.genesis = "/genesis.json".into();
    config.node_key = "/node.key".into();
    config.node_key_mark = Some("/node.key.mark".into());
    assert_eq!(load(&config.to_toml().unwrap()).unwrap(), config);
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, "data_dir = \"/elsewhere\"\n[p2p]\nswarm_key = \"../swarm.key\"").unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.node_key, dir.path().join("node.key"));
    assert_eq!(config.data_dir, PathBuf::from("/elsewhere"));
    assert_eq!(config.p2p.swarm_key, Some(dir.path().join("../swarm.key")));
}

#[test]
fn the_environment_is_stronger_than_the_file() {
    let text = "[mqtt]\nlisten = \"127.0.0.1:1\"\nmax_inflight = 3";
    let config = load_with(
        text,
        &[
            ("LEDGERMQ_MQTT__LISTEN", "0.0.0.0:1883"),
            ("LEDGERMQ_MQTT__MAX_CONNECTIONS", "500"),
            ("LEDGERMQ_DATA_DIR", "/data"),
            ("LEDGERMQ_P2P__BOOTSTRAP", r#"["/dns4/a/tcp/7000", "/dns4/b/tcp/7000"]"#),
            ("LEDGERMQ_P2P__MDNS", "true"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(config.mqtt.listen.to_string(), "0.0.0.0:1883");
    assert_eq!((config.mqtt.max_inflight, config.mqtt.max_connections), (3, 500));
    assert_eq!(config.data_dir, PathBuf::from("/data"));
    assert_eq!((config.p2p.bootstrap.len(), config.p2p.mdns), (2, true));
}

#[test]
fn a_wrong_environment_variable_is_named() {
    for (variable, value, expected) in [
        ("LEDGERMQ_MQTT_LISTEN", "0.0.0.0:1883", "no setting mqtt_listen"),
        ("LEDGERMQ_MQTT__LISTEM", "0.0.0.0:1883", "no setting mqtt.listem"),
        ("LEDGERMQ_MQTT__LISTEN", "1883", "mqtt.listen (set by LEDGERMQ_MQTT__LISTEN)"),
    ] {
        let error = load_with("", &[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(expected), "{variable}: {error}");
    }
}

#[test]
fn a_misspelt_setting_is_refused_by_name() {
    let error = message_of("[mqtt]\nmax_packet_byte = 5");
    assert!(error.contains("no setting mqtt.max_packet_byte"), "{error}");
    assert!(error.contains("max_packet_bytes"), "{error}");
    assert!(error.contains("did you mean max_packet_bytes? There is listen, "), "{error}");
    assert!(message_of("[mqqt]\nlisten = 5").contains("no setting mqqt; did you mean mqtt?"));
    assert!(message_of("color = 5").contains("no setting color; there is data_dir, "));
}

#[test]
fn what_is_no_toml_is_told_in_one_line_with_its_number() {
    for (text, line) in [("[mqtt\nlisten", 1), ("data_dir = x", 1), ("data_dir = \"a\"\ndata_dir = \"b\"", 2)]
    {
        let error = message_of(text);
        assert!(error.contains(&format!("node.toml: line {line}: ")) && !error.contains('\n'), "{error}");
    }
    let error = message_of("data_dir = 5");
    assert!(error.ends_with("data_dir: the number `5` stands where a path, as a text, belongs"), "{error}");
}

#[test]
fn a_value_of_the_wrong_kind_names_its_setting() {
    for (text, setting) in [
        ("[mqtt]\nlisten = \"nowhere\"", "mqtt.listen"),
        ("[mqtt]\nmax_inflight = -1", "mqtt.max_inflight"),
        ("[log]\nformat = \"xml\"", "log.format"),
        ("[p2p]\nbootstrap = [\"10.0.0.1:7000\"]", "p2p.bootstrap.0"),
        ("[policy]\ncached_items = \"many\"", "policy.cached_items"),
        ("[consensus]\nbatch_delay_ms = \"5 ms\"", "consensus.batch_delay_ms"),
    ] {
        let error = message_of(text);
        assert!(error.contains(setting) && error.contains("node.toml"), "{error}");
    }
}

#[test]
fn a_value_out_of_range_names_its_setting_and_the_range() {
    for (text, setting) in [
        ("worker_threads = 0", "worker_threads is 0, but must be 1 to 1024"),
        ("[mqtt]\nmax_packet_bytes = 1", "mqtt.max_packet_bytes is 1, but must be 4096 to 67108864"),
        ("[mqtt]\ntoken_max_age_s = 3600000", "mqtt.token_max_age_s"),
        ("[mqtt]\nmax_connections = 5", "mqtt.max_unregistered_connections must not be above"),
        ("[storage]\nlog_segment_bytes = 64", "storage.log_segment_bytes"),
        ("[p2p]\nlisten = []", "p2p.listen"),
        ("[p2p]\nresolve_interval_s = 0", "p2p.resolve_interval_s is 0, but must be 1 to 3600"),
        ("[log]\nlevel = \"loud\"", "log.level"),
        ("[api]\nannounce = \"node-0\"", "api.announce"),
        (
            "[api]\nprobes_listen = \"127.0.0.1:8080\"",
            "api.probes_listen must be another address than api.listen",
        ),
        ("[api]\nprobes_max_connections = 0", "api.probes_max_connections"),
    ] {
        let error = message_of(text);
        assert!(error.contains(setting), "{error}");
    }
}

#[test]
fn damaged_settings_are_refused() {
    for text in ["[mqtt", "data_dir = ", "\u{0}", "mqtt = 5"] {
        let error = message_of(text);
        assert!(error.contains("node.toml"), "{error}");
    }
    let missing = Config::load(Path::new("/nowhere/node.toml")).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { .. }));
}

/// Names of all settings, `section.setting`.
fn setting_names(value: &serde_json::Value, prefix: &str, into: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if value.is_object() {
            setting_names(value, &path, into);
        } else {
            into.push(path);
        }
    }
}

#[test]
fn the_settings_page_names_every_setting_with_its_default_and_no_other() {
    let page = include_str!("../../docs/SETTINGS.md");
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let mut names = Vec::new();
    setting_names(&defaults, "", &mut names);
    for name in &names {
        let value = defaults.pointer(&format!("/{}", name.replace('.', "/"))).unwrap();
        let shown = if value.is_null() { "none".to_owned() } else { value.to_string() };
        let row = format!("| `{name}` | `{shown}` |");
        assert!(page.contains(&row), "docs/SETTINGS.md lacks a row that begins {row}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, names.len(), "docs/SETTINGS.md describes a setting that does not exist");
}
