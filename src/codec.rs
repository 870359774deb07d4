//! Canonical bytes: bincode 2, big-endian, fixed-width integers, size-limited.
//!
//! Whatever is hashed or signed has exactly one encoding. [`decode`] therefore refuses input that is
//! longer than its limit, that leaves bytes over, or that does not encode back to itself, and never
//! allocates more than the limit says.

use bincode::config::{BigEndian, Configuration, Fixint, Limit};
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

/// Why bytes are not the canonical encoding of a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than this kind of value may have.
    #[error("{len} bytes, at most {limit} are allowed")]
    TooLong {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not an encoding of this kind of value.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Decodes, but is not the one canonical encoding.
    #[error("not in canonical form: bytes are left over, or say the same in another way")]
    NotCanonical,
}

const fn config<const LIMIT: usize>() -> Configuration<BigEndian, Fixint, Limit<LIMIT>> {
    bincode::config::standard().with_big_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

/// The canonical encoding of `value`.
///
/// # Panics
/// Never for the types of this crate: encoding into memory has no error of its own, and none of
/// their `Encode` implementations has one.
#[allow(clippy::expect_used)]
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    let unlimited = bincode::config::standard().with_big_endian().with_fixed_int_encoding();
    bincode::encode_to_vec(value, unlimited).expect("encoding into memory does not fail")
}

/// How many bytes [`encode`] makes of `value`, without making them.
///
/// # Panics
/// As little as [`encode`].
#[allow(clippy::expect_used)]
pub fn encoded_len<T: Encode>(value: &T) -> usize {
    let unlimited = bincode::config::standard().with_big_endian().with_fixed_int_encoding();
    let mut counter = bincode::enc::write::SizeWriter::default();
    bincode::encode_into_writer(value, &mut counter, unlimited).expect("counting does not fail");
    counter.bytes_written
}

/// The value whose canonical encoding is `bytes`, of at most `LIMIT` bytes.
///
/// # Errors
/// [`CodecError`]: too long, malformed, bytes left over, or another encoding of the same value.
pub fn decode<const LIMIT: usize, T: Encode + Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLong { len: bytes.len(), limit: LIMIT });
    }
    // bincode charges len * size_of::<T>() for containers, so its own limit is a multiple (16 or
    // more) of the input's length, which was checked above: a short input that claims to be a long
    // list is refused before much is allocated for it.
    let (value, used) = match bytes.len() {
        0..=0xFFFF => bincode::decode_from_slice(bytes, config::<0x10_0000>()),
        0x1_0000..=0xF_FFFF => bincode::decode_from_slice(bytes, config::<0x100_0000>()),
        _ => bincode::decode_from_slice(bytes, config::<0x2000_0000>()),
    }
    .map_err(|error| CodecError::Malformed(told(error)))?;
    if used != bytes.len() || encode(&value) != bytes {
        return Err(CodecError::NotCanonical);
    }
    Ok(value)
}

/// What is wrong, without the decoder's own names for it.
fn told(error: DecodeError) -> String {
    match error {
        DecodeError::UnexpectedEnd { .. } => "it ends too early".to_owned(),
        DecodeError::LimitExceeded => "it claims to be longer than it can be".to_owned(),
        DecodeError::Other(what) => what.to_owned(),
        DecodeError::OtherString(what) => what,
        DecodeError::Utf8 { .. } => "a text in it is not UTF-8".to_owned(),
        DecodeError::UnexpectedVariant { .. } => "it holds something of a kind that is not known".to_owned(),
        _ => "it holds a value that cannot be".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_encoded_decodes() {
        let value = (7_u64, vec![1_u8, 2, 3], Some("text".to_owned()));
        assert_eq!(encoded_len(&value), encode(&value).len());
        assert_eq!(decode::<1024, (u64, Vec<u8>, Option<String>)>(&encode(&value)).unwrap(), value);
    }

    #[test]
    fn integers_are_big_endian_and_fixed() {
        assert_eq!(encode(&1_u64), [0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut bytes = encode(&7_u32);
        bytes.push(0);
        assert_eq!(decode::<64, u32>(&bytes), Err(CodecError::NotCanonical));
    }

    #[test]
    fn what_is_wrong_is_told_in_words() {
        let bytes = encode(&"text".to_owned());
        let cut = decode::<64, String>(&bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!(cut.to_string(), "malformed: it ends too early");
        let no_text = decode::<64, String>(&encode(&vec![0xff_u8])).unwrap_err();
        assert_eq!(no_text.to_string(), "malformed: a text in it is not UTF-8");
        let neither = decode::<64, Option<u8>>(&[2, 0]).unwrap_err().to_string();
        assert!(neither.starts_with("malformed: it holds") && !neither.contains(['{', '"']), "{neither}");
    }

    #[test]
    fn too_long_is_refused_before_decoding() {
        assert_eq!(decode::<4, Vec<u8>>(&[0; 5]), Err(CodecError::TooLong { len: 5, limit: 4 }));
    }

    #[test]
    fn a_short_input_cannot_make_room_for_a_long_list_even_where_long_ones_are_allowed() {
        let bytes = encode(&1_000_000_u64);
        let claimed = decode::<0x100_0000, Vec<[u64; 4]>>(&bytes);
        assert!(
            matches!(claimed, Err(CodecError::Malformed(reason)) if reason.contains("longer than it can be"))
        );
    }

    #[test]
    fn a_huge_claimed_length_is_refused_without_allocating() {
        let bytes = encode(&u64::MAX);
        assert!(matches!(decode::<64, Vec<u64>>(&bytes), Err(CodecError::Malformed(_))));
    }
}
