//! base64url without padding (RFC 4648 section 5), strict: how control messages carry binary values.
//!
//! One text for one value: padding, whitespace, the other alphabet and stray low bits in the last
//! digit are refused. [`serde`](self::Bytes) support is for fields of fixed and of free length.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serializer};

use crate::types::{Hash, PublicKey};

/// The text of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes whose text is `text`; `None` if it is no strict base64url.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// A byte string that a JSON field can hold.
pub trait Bytes: Sized {
    /// The bytes.
    fn bytes(&self) -> &[u8];

    /// The value with these bytes, if they have its length.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl<const N: usize> Bytes for [u8; N] {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

impl Bytes for Hash {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

impl Bytes for PublicKey {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

/// For `#[serde(with = "base64url")]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<T: Bytes, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(value.bytes()))
}

/// For `#[serde(with = "base64url")]`.
///
/// # Errors
/// If the field is not strict base64url of the right length.
pub fn deserialize<'de, T: Bytes, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    decode(&text)
        .and_then(|bytes| T::from_bytes(&bytes))
        .ok_or_else(|| serde::de::Error::custom("expected base64url, without padding, of the right length"))
}

/// For `#[serde(with = "base64url::option")]`: a field that may be absent or null.
pub mod option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Bytes;

    #[derive(Deserialize)]
    struct Wrapped<T: Bytes>(#[serde(with = "super")] T);

    /// Writes the text, or null.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Bytes, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(|value| super::encode(value.bytes())).serialize(serializer)
    }

    /// Reads the text, or null.
    ///
    /// # Errors
    /// If the field is neither null nor strict base64url of the right length.
    pub fn deserialize<'de, T: Bytes, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        Ok(Option::<Wrapped<T>>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_text_of_a_value_is_taken() {
        assert_eq!(encode(&[0xfb, 0xff]), "-_8");
        assert_eq!(decode("-_8"), Some(vec![0xfb, 0xff]));
        for bad in ["-_8=", "+/8", "-_9", "-_8 ", "-", "-_8\n"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
