//! The device protocol (docs/PROTOCOL.md): what gateways and nodes say to each other over MQTT.
//!
//! Pure, and shared by the node and the gateway SDK: bytes in, bytes or an error out. Time and
//! randomness are arguments.
//!
//! | module | PROTOCOL.md | what |
//! | --- | --- | --- |
//! | [`topics`] | 2 | topics, who may publish and subscribe |
//! | [`token`] | 3 | JSON Web Tokens, a client's password |
//! | [`control`], [`fields`], [`codes`] | 4 | signed control messages, their kinds, fields and codes |
//! | [`handshake`], [`keyring`], [`ids`] | 5 | key transport by HPKE, and the keys that a node holds |
//! | [`telemetry`], [`envelope`], [`compose`], [`header`], [`item`] | 6 | telemetry messages, both sides |
//! | [`body`], [`json`], [`rfc3339`], [`encoding`] | 6 | the JSON body, its parts and its compression |
//! | [`window`] | 6 | which seqs are new, seen, reused or too old |
//! | [`cose`], [`base64url`] | 1, 4, 6 | the encodings that the others share |
pub mod base64url;
pub mod body;
pub mod codes;
pub mod compose;
pub mod control;
pub mod cose;
pub mod encoding;
pub mod envelope;
pub mod fields;
pub mod handshake;
pub mod header;
pub mod ids;
pub mod item;
pub mod json;
pub mod keyring;
pub mod rfc3339;
pub mod telemetry;
pub mod token;
pub mod topics;
pub mod window;

pub use header::{Header, HeaderError};
pub use item::{Item, ItemError, Value};
