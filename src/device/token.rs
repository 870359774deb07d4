//! JSON Web Tokens (RFC 7519), a registered client's MQTT password (docs/PROTOCOL.md section 3).
//!
//! `alg` is EdDSA and nothing else; the key is the client's registered identity key. `sub` is the
//! client id and `aud` the network id in hex, so a token of one client or ledger is worth nothing
//! for another. The library checks form and signature; times are judged here, against a clock that
//! is an argument.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::{SecretKey, VerifyingKey};
use crate::types::{ClientId, NetworkId, Timestamp};

/// How far the clocks of client and node may differ.
pub const CLOCK_SKEW_S: u64 = 60;
/// The longest that a token may be good for, unless the node is set otherwise.
pub const DEFAULT_MAX_LIFETIME_S: u64 = 60 * 60;
/// The longest token that is looked at. One with the claims of the protocol has about 400 bytes.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// PKCS #8 (RFC 8410) of an Ed25519 key, up to the seed: the form that the library takes.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too long to be looked at.
    #[error("a token has at most {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Form, `alg`, signature, `sub` or `aud`.
    #[error("the token is not good for this client and network: {0}")]
    Invalid(String),
    /// `iat`, or `nbf` if there is one, is too far ahead of the node's clock.
    #[error(
        "the token is from the future (it begins {ahead_s} s ahead of the node's clock); check the client's clock"
    )]
    FromTheFuture {
        /// Seconds ahead.
        ahead_s: u64,
    },
    /// `exp` is over.
    #[error("the token expired {since_s} s ago")]
    Expired {
        /// Seconds since.
        since_s: u64,
    },
    /// `exp` is too long after `iat`, or not after it.
    #[error("the token is good for {lifetime_s} s, 1 to {max_s} are allowed")]
    Lifetime {
        /// Seconds from `iat` to `exp`, 0 if `exp` is not later.
        lifetime_s: u64,
        /// The most allowed.
        max_s: u64,
    },
    /// The token could not be signed.
    #[error("the token could not be signed: {0}")]
    Signing(String),
}

/// A token's claims; times in seconds since 1970, as everywhere in JWTs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The client id.
    pub sub: String,
    /// The network id in hex.
    pub aud: String,
    /// When it was issued.
    pub iat: u64,
    /// When it ends.
    pub exp: u64,
    /// When it begins, if that is not when it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
}

/// A token for `client`, good for `lifetime_s` seconds from `now` on.
///
/// # Errors
/// [`TokenError::Signing`], which takes a defect of the library.
pub fn issue(
    key: &SecretKey,
    network: &NetworkId,
    client: &ClientId,
    now: Timestamp,
    lifetime_s: u64,
) -> Result<String, TokenError> {
    let iat = now.0 / 1000;
    let claims = Claims {
        sub: client.to_string(),
        aud: network.to_string(),
        iat,
        exp: iat.saturating_add(lifetime_s),
        nbf: None,
    };
    let mut der = Zeroizing::new([0; PKCS8_HEAD.len() + 32]);
    der[..PKCS8_HEAD.len()].copy_from_slice(&PKCS8_HEAD);
    der[PKCS8_HEAD.len()..].copy_from_slice(key.seed());
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &EncodingKey::from_ed_der(der.as_slice()))
        .map_err(|error| TokenError::Signing(error.to_string()))
}

/// Checks a token that came as the password of `client`, registered with `key`.
///
/// # Errors
/// [`TokenError`].
pub fn verify(
    token: &[u8],
    key: &VerifyingKey,
    network: &NetworkId,
    client: &ClientId,
    now: Timestamp,
    max_lifetime_s: u64,
) -> Result<Claims, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLong);
    }
    let key = DecodingKey::from_ed_der(key.public().as_bytes());
    let decoded = jsonwebtoken::decode::<Claims>(token, &key, &rules(network, client))
        .map_err(|error| TokenError::Invalid(error.to_string()))?;
    if decoded.header.crit.is_some() {
        return Err(TokenError::Invalid("it has critical header parameters".to_owned()));
    }
    let claims = decoded.claims;
    let now = now.0 / 1000;
    let begins = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
    if begins > now.saturating_add(CLOCK_SKEW_S) {
        return Err(TokenError::FromTheFuture { ahead_s: begins - now });
    }
    if now > claims.exp.saturating_add(CLOCK_SKEW_S) {
        return Err(TokenError::Expired { since_s: now - claims.exp });
    }
    let lifetime_s = claims.exp.saturating_sub(claims.iat);
    if lifetime_s == 0 || lifetime_s > max_lifetime_s {
        return Err(TokenError::Lifetime { lifetime_s, max_s: max_lifetime_s });
    }
    Ok(claims)
}

/// What the library is to check. It would ask the machine's clock about `exp`, so that is left out
/// here; all four claims are required, by the type that they are read into.
fn rules(network: &NetworkId, client: &ClientId) -> Validation {
    let mut rules = Validation::new(Algorithm::EdDSA);
    rules.validate_exp = false;
    rules.validate_nbf = false;
    rules.set_required_spec_claims(&["exp", "sub", "aud"]);
    rules.set_audience(&[network.to_string()]);
    rules.sub = Some(client.to_string());
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::base64url;
    use proptest::prelude::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);
    const NOW: Timestamp = Timestamp(1_767_225_600_999);
    const NOW_S: u64 = 1_767_225_600;

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    fn check(token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        let key = VerifyingKey::parse(&key().public()).unwrap();
        verify(token.as_bytes(), &key, &NETWORK, &client(), now, DEFAULT_MAX_LIFETIME_S)
    }

    /// A token with any header and claims, signed as RFC 7515 says.
    fn token(header: &str, claims: &str) -> String {
        let input =
            format!("{}.{}", base64url::encode(header.as_bytes()), base64url::encode(claims.as_bytes()));
        format!("{input}.{}", base64url::encode(&key().sign_raw(input.as_bytes()).0))
    }

    fn claims(iat: u64, exp: u64) -> String {
        format!(r#"{{"sub":"devices/iot","aud":"{NETWORK}","iat":{iat},"exp":{exp}}}"#)
    }

    const EDDSA: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;

    #[test]
    fn an_issued_token_is_good_until_it_ends() {
        let token = issue(&key(), &NETWORK, &client(), NOW, 600).unwrap();
        let claims = check(&token, NOW).unwrap();
        assert_eq!((claims.iat, claims.exp), (NOW_S, NOW_S + 600));
        assert!(check(&token, NOW.plus_ms(660_000)).is_ok());
        assert_eq!(check(&token, NOW.plus_ms(661_000)), Err(TokenError::Expired { since_s: 61 }));
    }

    #[test]
    fn a_token_is_bound_to_client_network_and_key() {
        let token = issue(&key(), &NETWORK, &client(), NOW, 600).unwrap();
        let verifying = VerifyingKey::parse(&key().public()).unwrap();
        let other_client = ClientId::new("devices/other").unwrap();
        let other_key = VerifyingKey::parse(&SecretKey::from_seed(&[8; 32]).public()).unwrap();
        let refused = |key, network: &NetworkId, client: &ClientId| {
            let verdict = verify(token.as_bytes(), key, network, client, NOW, DEFAULT_MAX_LIFETIME_S);
            assert!(matches!(verdict, Err(TokenError::Invalid(_))), "{verdict:?}");
        };
        refused(&verifying, &NETWORK, &other_client);
        refused(&verifying, &NetworkId([2; 32]), &client());
        refused(&other_key, &NETWORK, &client());
    }

    #[test]
    fn times_are_judged_with_a_skew_of_a_minute() {
        let check = |iat, exp| check(&token(EDDSA, &claims(iat, exp)), NOW).map(|_| ());
        assert_eq!(check(NOW_S + 60, NOW_S + 120), Ok(()));
        assert_eq!(check(NOW_S + 61, NOW_S + 120), Err(TokenError::FromTheFuture { ahead_s: 61 }));
        let later = claims(NOW_S, NOW_S + 120).replace("\"iat\"", &format!("\"nbf\":{},\"iat\"", NOW_S + 61));
        let later = super::tests::check(&token(EDDSA, &later), NOW).map(|_| ());
        assert_eq!(later, Err(TokenError::FromTheFuture { ahead_s: 61 }));
        assert_eq!(check(NOW_S - 100, NOW_S - 60), Ok(()));
        assert_eq!(check(NOW_S - 100, NOW_S - 61), Err(TokenError::Expired { since_s: 61 }));
        assert_eq!(check(NOW_S, NOW_S + 3600), Ok(()));
        let too_long = Err(TokenError::Lifetime { lifetime_s: 3601, max_s: 3600 });
        assert_eq!(check(NOW_S, NOW_S + 3601), too_long);
        assert!(check(NOW_S, u64::MAX).is_err());
        assert_eq!(check(NOW_S, NOW_S), Err(TokenError::Lifetime { lifetime_s: 0, max_s: 3600 }));
        assert!(check(NOW_S + 10, NOW_S).is_err());
    }

    #[test]
    fn only_eddsa_is_taken() {
        let good = claims(NOW_S, NOW_S + 600);
        assert!(check(&token(r#"{"alg":"EdDSA"}"#, &good), NOW).is_ok());
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"ES256"}"#,
            r#"{"alg":"Ed448"}"#,
            r#"{"typ":"JWT"}"#,
            r#"{"alg":"EdDSA","crit":["x"],"x":1}"#,
            "{}",
            "x",
        ] {
            let verdict = check(&token(header, &good), NOW);
            assert!(matches!(verdict, Err(TokenError::Invalid(_))), "{header}: {verdict:?}");
        }
        let unsigned = token(r#"{"alg":"none"}"#, &good);
        let unsigned = unsigned.rsplit_once('.').unwrap().0;
        assert!(check(&format!("{unsigned}."), NOW).is_err());
    }

    #[test]
    fn a_public_key_used_as_an_hmac_secret_opens_nothing() {
        let claims = Claims {
            sub: "devices/iot".into(),
            aud: NETWORK.to_string(),
            iat: NOW_S,
            exp: NOW_S + 600,
            nbf: None,
        };
        let secret = EncodingKey::from_secret(key().public().as_bytes());
        let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret).unwrap();
        assert!(matches!(check(&forged, NOW), Err(TokenError::Invalid(_))));
    }

    #[test]
    fn a_missing_or_doubled_claim_is_refused() {
        let aud = NETWORK.to_string();
        for claims in [
            format!(r#"{{"aud":"{aud}","iat":{NOW_S},"exp":{}}}"#, NOW_S + 60),
            format!(r#"{{"sub":"devices/iot","iat":{NOW_S},"exp":{}}}"#, NOW_S + 60),
            format!(r#"{{"sub":"devices/iot","aud":"{aud}","exp":{}}}"#, NOW_S + 60),
            format!(r#"{{"sub":"devices/iot","aud":"{aud}","iat":{NOW_S}}}"#),
            format!(
                r#"{{"sub":"x/y","sub":"devices/iot","aud":"{aud}","iat":{NOW_S},"exp":{}}}"#,
                NOW_S + 60
            ),
            format!(r#"{{"sub":"devices/iot","aud":["{aud}","x"],"iat":{NOW_S},"exp":{}}}"#, NOW_S + 60),
            format!(r#"{{"sub":"devices/iot","aud":"{aud}","iat":-1,"exp":{}}}"#, NOW_S + 60),
        ] {
            let verdict = check(&token(EDDSA, &claims), NOW);
            assert!(matches!(verdict, Err(TokenError::Invalid(_))), "{claims}: {verdict:?}");
        }
    }

    #[test]
    fn every_bit_flip_is_refused() {
        let token = issue(&key(), &NETWORK, &client(), NOW, 600).unwrap().into_bytes();
        let key = VerifyingKey::parse(&key().public()).unwrap();
        for bit in 0..token.len() * 8 {
            let mut altered = token.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&altered, &key, &NETWORK, &client(), NOW, 3600).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_huge_token_is_not_looked_at() {
        assert_eq!(check(&"a".repeat(MAX_TOKEN_BYTES + 1), NOW), Err(TokenError::TooLong));
    }

    proptest! {
        #[test]
        fn arbitrary_tokens_never_panic(token in "\\PC{0,60}", parts in "[A-Za-z0-9_.-]{0,80}") {
            prop_assert!(check(&token, NOW).is_err());
            prop_assert!(check(&parts, NOW).is_err());
        }
    }
}
