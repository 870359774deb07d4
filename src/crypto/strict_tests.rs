//! The verdict on a signature is that of strict verification, for every input.
//!
//! Why: both check `s < l` and decompress A in the same way, and both compare R's bytes with the canonical
//! bytes of `sB - kA`, with the same k. Strict verification asks besides that R's bytes are a point, that
//! its order is not small, and that A's is not. If the bytes are equal to canonical ones, they are a point, and its
//! order is small exactly if they are among the eight canonical encodings of such points; if they are not
//! equal, both refuse. What follows looks for a mistake in that, against dalek's `verify_strict` and against
//! the rule written out in points and scalars.

#![allow(clippy::unwrap_used)]

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT as BASE;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use proptest::prelude::*;
use sha2::Sha512;

use super::*;

/// The published vectors of "Taming the Many EdDSAs" (Chalkias, Garillot, Nikolaenko; 2020): message, key
/// and signature. The verdict of the strictest rule stands first.
const SPECCHECK: [(bool, &str, &str, &str); 12] = [
    // 0: S = 0, small A, small R.
    (
        false,
        "8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a0000000000000000000000000000000000000000000000000000000000000000",
    ),
    // 1: small A, mixed R.
    (
        false,
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
    ),
    // 2: mixed A, small R.
    (
        false,
        "aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
    ),
    // 3: mixed A and R, the equation holds without the cofactor: a key that `parse` refuses.
    (
        true,
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
    ),
    // 4: mixed A and R, it holds with the cofactor only.
    (
        false,
        "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed5125ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
    ),
    // 5: mixed A, R of prime order, it holds with the cofactor only.
    (
        false,
        "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405",
    ),
    // 6: S > l.
    (
        false,
        "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
        "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
        "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
    ),
    // 7: S far above l.
    (
        false,
        "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
        "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
        "8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa19427e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22",
    ),
    // 8: R small and not canonical, k over it as it came.
    (
        false,
        "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff03be9678ac102edcd92b0210bb34d7428d12ffc5df5f37e359941266a4e35f0f",
    ),
    // 9: R small and not canonical, k over its canonical bytes.
    (
        false,
        "9bedc267423725d473888631ebf45988bad3db83851ee85c85e241a07d148b41",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffca8c5b64cd208982aa38d4936621a4775aa233aa0505711d8fdcfdaa943d4908",
    ),
    // 10: A small and not canonical, k over it as it came.
    (
        false,
        "e96b7021eb39c1a163b6da4e3093dcd3f21387da4cc4572be588fafae23c155b",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
    ),
    // 11: A small and not canonical, k over its canonical bytes.
    (
        false,
        "39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dca5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
    ),
];

/// The three verdicts, which must agree; none for a key that no verification takes.
fn verdict(key: &[u8; 32], content: &[u8], signature: [u8; 64]) -> Option<bool> {
    let key = VerifyingKey::parse_any_order(&PublicKey(*key)).ok()?;
    let ours = key.verify_raw(content, &Signature(signature)).is_ok();
    let strict = key.0.verify_strict(content, &ed25519_dalek::Signature::from_bytes(&signature)).is_ok();
    let written_out = rule(key.0.as_bytes(), content, signature).is_some();
    let name = hex::encode(signature);
    assert_eq!((ours, ours), (strict, written_out), "key {}, {name}", hex::encode(key.0.as_bytes()));
    Some(ours)
}

/// The rule: s below l; A and R points whose order is not small; R the canonical bytes of `sB - kA`.
fn rule(key: &[u8; 32], content: &[u8], signature: [u8; 64]) -> Option<()> {
    let (r, s) = signature.split_at(32);
    let s: Scalar = Option::from(Scalar::from_canonical_bytes(s.try_into().unwrap()))?;
    let (a, bytes) = (CompressedEdwardsY(*key).decompress()?, CompressedEdwardsY(r.try_into().unwrap()));
    let r = bytes.decompress()?;
    let k = challenge(bytes.as_bytes(), key, content);
    let fits = (BASE * s - a * k).compress().to_bytes() == bytes.to_bytes();
    (fits && !r.is_small_order() && !a.is_small_order()).then_some(())
}

fn challenge(r: &[u8; 32], key: &[u8; 32], content: &[u8]) -> Scalar {
    Scalar::hash_from_bytes::<Sha512>(&[r, key, content].concat())
}

/// R's bytes and the s that fulfils the equation for them, but for what torsion is in R and in A.
fn signed(a: Scalar, key: &[u8; 32], r: Scalar, r_bytes: &[u8; 32], content: &[u8]) -> [u8; 64] {
    let s = r + challenge(r_bytes, key, content) * a;
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(r_bytes);
    signature[32..].copy_from_slice(s.as_bytes());
    signature
}

/// Every encoding that is not canonical: y from p to 2^255 - 1 with either sign of x, and x = 0 with a sign.
fn not_canonical() -> Vec<[u8; 32]> {
    let mut found = Vec::new();
    for y in 0xed..=0xff_u8 {
        let mut bytes = [0xff; 32];
        bytes[0] = y;
        for high in [0x7f, 0xff] {
            bytes[31] = high;
            found.push(bytes);
        }
    }
    for x_is_zero in [EdwardsPoint::default(), EIGHT_TORSION[4]] {
        let mut bytes = x_is_zero.compress().to_bytes();
        bytes[31] |= 0x80;
        found.push(bytes);
    }
    found
}

#[test]
fn the_published_edge_cases_have_the_strict_verdict() {
    for (number, (accepted, message, key, signature)) in SPECCHECK.into_iter().enumerate() {
        let key: [u8; 32] = hex::decode(key).unwrap().try_into().unwrap();
        let signature = hex::decode(signature).unwrap().try_into().unwrap();
        let found = verdict(&key, &hex::decode(message).unwrap(), signature);
        assert_eq!(found.unwrap_or(false), accepted, "case {number}");
        // The one that is accepted has a key that nobody can register.
        let is_key = VerifyingKey::parse(&PublicKey(key)).is_ok();
        assert_eq!(is_key, [6, 7].contains(&number), "case {number}");
    }
}

#[test]
fn points_of_every_mixed_order_have_the_strict_verdict_whether_the_equation_holds_or_not() {
    let (a, r) = (Scalar::from(7_u64).invert(), Scalar::from(11_u64).invert());
    let (mut accepted, mut refused) = (0, 0);
    for in_key in EIGHT_TORSION {
        let key = (BASE * a + in_key).compress().to_bytes();
        for in_r in EIGHT_TORSION {
            let r_bytes = (BASE * r + in_r).compress().to_bytes();
            for content in 0..12_u8 {
                match verdict(&key, &[content], signed(a, &key, r, &r_bytes, &[content])) {
                    Some(true) => accepted += 1,
                    Some(false) => refused += 1,
                    None => panic!("a key that is a point"),
                }
            }
        }
    }
    // About one in eight fulfils the equation.
    assert!(accepted > 50 && refused > 500, "{accepted} accepted, {refused} refused");
}

#[test]
fn r_of_small_order_is_refused_in_each_of_its_encodings_whether_the_equation_holds_or_not() {
    let (a, zero) = (Scalar::from(7_u64).invert(), Scalar::ZERO);
    let canonical = EIGHT_TORSION.map(|point| point.compress().to_bytes());
    let mut held = 0;
    for r_bytes in not_canonical().into_iter().chain(canonical) {
        for in_key in EIGHT_TORSION {
            let key = (BASE * a + in_key).compress().to_bytes();
            for content in 0..12_u8 {
                let signature = signed(a, &key, zero, &r_bytes, &[content]);
                assert_eq!(verdict(&key, &[content], signature), Some(false));
                let r = CompressedEdwardsY(r_bytes).decompress();
                let expected = -(in_key * challenge(&r_bytes, &key, &[content]));
                held += u32::from(r == Some(expected));
            }
        }
    }
    assert!(held > 50, "the equation held for {held}");
}

#[test]
fn keys_in_encodings_that_are_not_canonical_have_the_strict_verdict() {
    let mut points = 0;
    for key in not_canonical() {
        assert!(VerifyingKey::parse(&PublicKey(key)).is_err());
        for r_bytes in [BASE.compress().to_bytes(), EdwardsPoint::default().compress().to_bytes(), key] {
            for s in [Scalar::ZERO, Scalar::ONE] {
                let mut signature = [0; 64];
                signature[..32].copy_from_slice(&r_bytes);
                signature[32..].copy_from_slice(s.as_bytes());
                if let Some(accepted) = verdict(&key, b"content", signature) {
                    assert!(!accepted);
                    points += 1;
                }
            }
        }
    }
    assert!(points > 50, "{points} that are points");
}

#[test]
fn s_plus_any_multiple_of_the_order_is_refused() {
    let key = SecretKey::from_seed(&[7; 32]);
    let good = key.sign_raw(b"content").0;
    assert_eq!(verdict(&key.public().0, b"content", good), Some(true));
    // l, little-endian.
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut signature = good;
    for times in 1..16 {
        let mut carry = 0;
        for (byte, more) in signature[32..].iter_mut().zip(&order) {
            let sum = u16::from(*byte) + u16::from(*more) + carry;
            [*byte, _] = sum.to_le_bytes();
            carry = sum >> 8;
        }
        if carry > 0 {
            assert!(times > 14, "so often it fits into 32 bytes");
            break;
        }
        assert_eq!(verdict(&key.public().0, b"content", signature), Some(false), "{times} times");
    }
}

proptest! {
    #[test]
    fn any_bytes_and_any_mixture_have_the_strict_verdict(
        seed: [u8; 32], nonce: [u8; 32], content: Vec<u8>, in_key in 0..8_usize, in_r in 0..8_usize,
        any_key: [u8; 32], any_r: [u8; 32], any_s: [u8; 32], flip in 0..512_usize,
    ) {
        let (a, r) = (Scalar::from_bytes_mod_order(seed), Scalar::from_bytes_mod_order(nonce));
        let key = (BASE * a + EIGHT_TORSION[in_key]).compress().to_bytes();
        let r_bytes = (BASE * r + EIGHT_TORSION[in_r]).compress().to_bytes();
        let mut signature = signed(a, &key, r, &r_bytes, &content);
        verdict(&key, &content, signature);
        verdict(&key, &content, signed(a, &key, r, &any_r, &content));
        verdict(&any_key, &content, signature);
        signature[flip / 8] ^= 1 << (flip % 8);
        verdict(&key, &content, signature);
        signature[32..].copy_from_slice(&any_s);
        verdict(&key, &content, signature);
    }
}
