//! The device protocol (docs/PROTOCOL.md): what gateways and nodes say to each other over MQTT.
//!
//! Pure, and shared by the node and the gateway SDK: bytes in, bytes or an error out.
pub mod header;
pub mod item;

pub use header::{Header, HeaderError};
pub use item::{Item, ItemError, Value};
