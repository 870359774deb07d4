//! How a telemetry body is compressed (docs/PROTOCOL.md section 6), with hard limits on the way back.
//!
//! | number | encoding |
//! | --- | --- |
//! | 0 | as is |
//! | 1 | one zstd frame (RFC 8878): no dictionary, window of at most 8 MiB |
//! | 2 | one raw DEFLATE stream (RFC 1951) |
//!
//! Nothing may stand before or after the frame or stream. Decompression stops at its limit, so a
//! small message cannot make a node hold much more memory than it allows one message.

use std::io::Read as _;
use std::sync::{Mutex, PoisonError};

use flate2::{Decompress, FlushDecompress, Status};
use zstd::bulk::Compressor;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

/// The largest window that a zstd frame may ask for.
const MAX_ZSTD_WINDOW_BYTES: u64 = 8 << 20;
/// Its logarithm, as zstd's own limit wants it.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_LEVEL: i32 = 3;
/// The most that is taken from the system because a frame says that it has so much.
const MAX_CLAIM_BYTES: usize = 1 << 20;
/// How much the output of a step grows by.
const STEP_BYTES: usize = 64 << 10;

/// Why a body was not decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// No such encoding.
    #[error("there is no encoding {0}; 0 is none, 1 zstd, 2 DEFLATE")]
    Unknown(u64),
    /// Not exactly one frame or stream of the encoding.
    #[error("the body is not one {0} in the form that the protocol takes")]
    Corrupt(&'static str),
    /// More than the limit.
    #[error("the body has more than {limit} bytes uncompressed")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
    },
}

/// An encoding of a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// 0: as is.
    Identity,
    /// 1: one zstd frame.
    #[default]
    Zstd,
    /// 2: raw DEFLATE.
    Deflate,
}

impl Encoding {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Identity => 0,
            Self::Zstd => 1,
            Self::Deflate => 2,
        }
    }

    /// The encoding of a number.
    ///
    /// # Errors
    /// [`EncodingError::Unknown`].
    pub const fn from_number(number: u64) -> Result<Self, EncodingError> {
        match number {
            0 => Ok(Self::Identity),
            1 => Ok(Self::Zstd),
            2 => Ok(Self::Deflate),
            unknown => Err(EncodingError::Unknown(unknown)),
        }
    }

    /// Compresses a body.
    ///
    /// # Errors
    /// [`EncodingError::Corrupt`] if the compressor fails, which takes a lack of memory.
    pub fn compress(self, body: &[u8]) -> Result<Vec<u8>, EncodingError> {
        match self {
            Self::Identity => Ok(body.to_vec()),
            Self::Zstd => compress_zstd(body),
            Self::Deflate => {
                let mut encoder = flate2::read::DeflateEncoder::new(body, flate2::Compression::default());
                let mut out = Vec::new();
                encoder.read_to_end(&mut out).map_err(|_| CORRUPT_DEFLATE)?;
                Ok(out)
            }
        }
    }

    /// How long a body says that it is, decompressed; [`Self::decompress`] makes no more of it. None if it
    /// does not say.
    pub fn unpacked_len(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Identity => Some(bytes.len()),
            Self::Zstd => usize::try_from(ZstdFrame::read(bytes)?.content_bytes?).ok(),
            Self::Deflate => None,
        }
    }

    /// Decompresses a body of at most `limit` bytes.
    ///
    /// # Errors
    /// [`EncodingError::Corrupt`] or [`EncodingError::TooLarge`].
    pub fn decompress(self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, EncodingError> {
        match self {
            Self::Identity if bytes.len() > limit => Err(EncodingError::TooLarge { limit }),
            Self::Identity => Ok(bytes.to_vec()),
            Self::Zstd => unzstd(bytes, limit),
            Self::Deflate => inflate(bytes, limit),
        }
    }
}

const CORRUPT_ZSTD: EncodingError = EncodingError::Corrupt("zstd frame");
const CORRUPT_DEFLATE: EncodingError = EncodingError::Corrupt("DEFLATE stream");

fn compress_zstd(body: &[u8]) -> Result<Vec<u8>, EncodingError> {
    if body.len() > MAX_KEPT_BYTES / 4 {
        return zstd::bulk::compress(body, ZSTD_LEVEL).map_err(|_| CORRUPT_ZSTD);
    }
    let mut encoder =
        ENCODERS.take().map_or_else(|| Compressor::new(ZSTD_LEVEL), Ok).map_err(|_| CORRUPT_ZSTD)?;
    let bytes = encoder.compress(body).map_err(|_| CORRUPT_ZSTD)?;
    ENCODERS.put(encoder);
    Ok(bytes)
}

fn unzstd(bytes: &[u8], limit: usize) -> Result<Vec<u8>, EncodingError> {
    let frame = ZstdFrame::read(bytes).ok_or(CORRUPT_ZSTD)?;
    if frame.content_bytes.is_some_and(|content| content > limit as u64) {
        return Err(EncodingError::TooLarge { limit });
    }
    if frame.window_bytes > MAX_ZSTD_WINDOW_BYTES {
        return Err(CORRUPT_ZSTD);
    }
    let content = frame.content_bytes.and_then(|content| usize::try_from(content).ok());
    let mut decoder = DECODERS.take().or_else(new_decoder).ok_or(CORRUPT_ZSTD)?;
    // What is said is also the limit, so that nobody can understate the work.
    let result = match content {
        Some(content) => unzstd_with(&mut decoder, bytes, content, content).map_err(|_| CORRUPT_ZSTD),
        None => unzstd_with(&mut decoder, bytes, STEP_BYTES, limit),
    };
    if decoder.sizeof() <= MAX_KEPT_BYTES {
        DECODERS.put(decoder);
    }
    result
}

/// With the whole frame and room for all of its content at hand, zstd decodes in one pass and needs no
/// buffers of its own.
fn unzstd_with(
    decoder: &mut DCtx<'static>,
    bytes: &[u8],
    content: usize,
    limit: usize,
) -> Result<Vec<u8>, EncodingError> {
    decoder.reset(ResetDirective::SessionOnly).map_err(|_| CORRUPT_ZSTD)?;
    let mut input = InBuffer::around(bytes);
    // A frame may claim what it does not have.
    let mut out = Vec::with_capacity(content.min(limit).clamp(1, MAX_CLAIM_BYTES));
    loop {
        let filled = out.len();
        let mut output = OutBuffer::around_pos(&mut out, filled);
        let missing = decoder.decompress_stream(&mut output, &mut input).map_err(|_| CORRUPT_ZSTD)?;
        if out.len() > limit {
            return Err(EncodingError::TooLarge { limit });
        }
        let all_read = input.pos() == bytes.len();
        if missing == 0 {
            return if all_read { Ok(out) } else { Err(CORRUPT_ZSTD) };
        }
        if out.len() < out.capacity() && (all_read || out.len() == filled) {
            return Err(CORRUPT_ZSTD); // the input ended before the frame did
        }
        if out.len() == out.capacity() {
            out.reserve(STEP_BYTES.min(limit + 1 - out.len()));
        }
    }
}

fn new_decoder() -> Option<DCtx<'static>> {
    let mut decoder = DCtx::try_create()?;
    decoder.set_parameter(DParameter::WindowLogMax(MAX_ZSTD_WINDOW_LOG)).ok()?;
    Some(decoder)
}

/// Contexts of zstd, kept for the next message: making one costs as much as a signature check.
struct Kept<T>(Mutex<Vec<T>>);

static DECODERS: Kept<DCtx<'static>> = Kept(Mutex::new(Vec::new()));
static ENCODERS: Kept<Compressor<'static>> = Kept(Mutex::new(Vec::new()));

/// More of them than threads that work at once are not needed.
const MAX_KEPT: usize = 8;
/// One that had a large message is let go.
const MAX_KEPT_BYTES: usize = 1 << 20;

impl<T> Kept<T> {
    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, context: T) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_KEPT {
            kept.push(context);
        }
    }
}

/// What a zstd frame's header claims (RFC 8878 section 3.1.1.1). Read here because the library
/// looks at the window only where it does not decode in one pass, and takes skippable frames.
struct ZstdFrame {
    window_bytes: u64,
    content_bytes: Option<u64>,
}

impl ZstdFrame {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (descriptor, rest) = bytes.strip_prefix(ZSTD_MAGIC)?.split_first()?;
        let single_segment = descriptor & 0x20 != 0;
        let has_dictionary_id = descriptor & 0x03 != 0;
        let is_reserved = descriptor & 0x08 != 0;
        if has_dictionary_id || is_reserved {
            return None;
        }
        let (window, rest) =
            if single_segment { (None, rest) } else { rest.split_first().map(|(b, r)| (Some(*b), r))? };
        let content_bytes = match (descriptor >> 6, single_segment) {
            (0, false) => None,
            (0, true) => Some(u64::from(*rest.first()?)),
            (1, _) => Some(u64::from(u16::from_le_bytes(rest.get(..2)?.try_into().ok()?)) + 256),
            (2, _) => Some(u64::from(u32::from_le_bytes(rest.get(..4)?.try_into().ok()?))),
            _ => Some(u64::from_le_bytes(rest.get(..8)?.try_into().ok()?)),
        };
        let window_bytes = match window {
            Some(byte) => {
                let base = 1_u64 << (10 + (byte >> 3));
                base + base / 8 * u64::from(byte & 7)
            }
            None => content_bytes?,
        };
        Some(Self { window_bytes, content_bytes })
    }
}

fn inflate(bytes: &[u8], limit: usize) -> Result<Vec<u8>, EncodingError> {
    let mut inflater = Decompress::new(false);
    let mut out = Vec::new();
    loop {
        let read = usize::try_from(inflater.total_in()).map_err(|_| CORRUPT_DEFLATE)?;
        let before = (inflater.total_in(), out.len());
        // Twice as much each time: a bomb then costs its limit twice, not once for each step, where the
        // allocator keeps for a while what was given back.
        out.reserve_exact(out.len().max(STEP_BYTES).min(limit + 1 - out.len()));
        let status = inflater
            .decompress_vec(&bytes[read..], &mut out, FlushDecompress::None)
            .map_err(|_| CORRUPT_DEFLATE)?;
        if out.len() > limit {
            return Err(EncodingError::TooLarge { limit });
        }
        if status == Status::StreamEnd {
            let all_read = inflater.total_in() == bytes.len() as u64;
            return if all_read { Ok(out) } else { Err(CORRUPT_DEFLATE) };
        }
        if before == (inflater.total_in(), out.len()) {
            return Err(CORRUPT_DEFLATE); // the input ended before the stream did
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Encoding; 3] = [Encoding::Identity, Encoding::Zstd, Encoding::Deflate];
    const LIMIT: usize = 1 << 20;

    #[test]
    fn numbers_name_encodings() {
        for encoding in ALL {
            assert_eq!(Encoding::from_number(u64::from(encoding.number())), Ok(encoding));
        }
        assert_eq!(Encoding::from_number(3), Err(EncodingError::Unknown(3)));
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = vec![b' '; 64 << 20];
        for encoding in [Encoding::Zstd, Encoding::Deflate] {
            let bytes = encoding.compress(&bomb).unwrap();
            assert!(bytes.len() < 100_000);
            assert_eq!(encoding.decompress(&bytes, LIMIT), Err(EncodingError::TooLarge { limit: LIMIT }));
        }
    }

    #[test]
    fn a_zstd_bomb_that_does_not_say_its_size_stops_at_the_limit() {
        let bytes = zstd::stream::encode_all(std::io::repeat(b' ').take(8 << 20), 3).unwrap();
        assert_eq!(ZstdFrame::read(&bytes).unwrap().content_bytes, None);
        assert_eq!(Encoding::Zstd.decompress(&bytes, LIMIT), Err(EncodingError::TooLarge { limit: LIMIT }));
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        let body = vec![7; LIMIT];
        for encoding in ALL {
            let bytes = encoding.compress(&body).unwrap();
            assert_eq!(encoding.decompress(&bytes, LIMIT).as_ref(), Ok(&body), "{encoding:?}");
            let refused = encoding.decompress(&bytes, LIMIT - 1);
            assert_eq!(refused, Err(EncodingError::TooLarge { limit: LIMIT - 1 }), "{encoding:?}");
        }
    }

    #[test]
    fn whatever_precedes_or_follows_is_refused() {
        for encoding in [Encoding::Zstd, Encoding::Deflate] {
            let good = encoding.compress(b"some body, some body").unwrap();
            for len in 0..good.len() {
                assert!(encoding.decompress(&good[..len], LIMIT).is_err(), "{encoding:?} cut to {len}");
            }
            let surplus = [&good[..], &[0]].concat();
            assert!(encoding.decompress(&surplus, LIMIT).is_err(), "{encoding:?} and a byte");
            let twice = [&good[..], &good[..]].concat();
            assert!(encoding.decompress(&twice, LIMIT).is_err(), "{encoding:?} twice");
        }
    }

    #[test]
    fn skippable_frames_and_dictionaries_are_refused() {
        let good = Encoding::Zstd.compress(b"some body").unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0][..], &good].concat();
        assert_eq!(Encoding::Zstd.decompress(&skippable, LIMIT), Err(CORRUPT_ZSTD));
        let mut with_dictionary = good;
        with_dictionary[4] |= 1;
        with_dictionary.insert(5, 9);
        assert_eq!(Encoding::Zstd.decompress(&with_dictionary, LIMIT), Err(CORRUPT_ZSTD));
    }

    #[test]
    fn one_context_serves_good_and_bad_messages_in_turn() {
        let good = Encoding::Zstd.compress(&[b'x'; 5000]).unwrap();
        let unsized_frame = zstd::stream::encode_all(&[b'y'; 300_000][..], 3).unwrap();
        let mut damaged = good.clone();
        damaged[7] ^= 0xff;
        for _ in 0..3 {
            assert_eq!(Encoding::Zstd.decompress(&good, LIMIT).unwrap(), [b'x'; 5000]);
            assert_eq!(Encoding::Zstd.decompress(&unsized_frame, LIMIT).unwrap(), [b'y'; 300_000]);
            for len in 0..good.len() {
                assert!(Encoding::Zstd.decompress(&good[..len], LIMIT).is_err());
            }
            assert!(Encoding::Zstd.decompress(&[&good[..], &good].concat(), LIMIT).is_err());
            assert_ne!(Encoding::Zstd.decompress(&damaged, LIMIT), Ok(vec![b'x'; 5000]));
        }
    }

    #[test]
    fn a_window_above_8_mib_is_refused() {
        let window = |log: u32| {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(log).unwrap();
            std::io::Write::write_all(&mut encoder, &[b'x'; 100_000]).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(ZstdFrame::read(&window(23)).unwrap().window_bytes, 8 << 20);
        assert_eq!(Encoding::Zstd.decompress(&window(23), LIMIT).unwrap().len(), 100_000);
        assert_eq!(Encoding::Zstd.decompress(&window(24), LIMIT), Err(CORRUPT_ZSTD));
    }

    proptest! {
        #[test]
        fn what_was_compressed_is_decompressed(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            for encoding in ALL {
                let bytes = encoding.compress(&body).unwrap();
                prop_assert_eq!(encoding.decompress(&bytes, LIMIT), Ok(body.clone()));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic_or_exceed_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let framed = [ZSTD_MAGIC, &bytes].concat();
            for (encoding, bytes) in [(Encoding::Deflate, &bytes), (Encoding::Zstd, &bytes), (Encoding::Zstd, &framed)] {
                if let Ok(body) = encoding.decompress(bytes, 1000) {
                    prop_assert!(body.len() <= 1000);
                }
            }
        }
    }
}
