//! Control messages (docs/PROTOCOL.md section 4): JSON that a person can read, signed as COSE_Sign1.
//!
//! ```text
//! protected  a3 01 27 03 18 32 04 58 20 kid      {1: -8 (EdDSA), 3: 50 (JSON), 4: signer's public key}
//! payload    one JSON object
//! AAD        ["ledgermq", 1, kind, network id, client id]
//! ```
//!
//! A kind is a type here: [`sign`] takes a [`Fields`] type and [`SignedControl::verify`] gives one
//! back, so a message of one kind can never be read as another. Who may sign what is for the caller
//! to say: a node passes the client's registered key, a client the key of a node that it trusts.

use super::codes::KeyFailCode;
use super::cose::{self, Sign1};
pub use super::fields::{
    Ack, ControlKind, ErrorReply, Fields, Forbidden, KeyFail, KeySuccess, KeyTransport, Unauth,
};
use super::topics::Downlink;
use crate::crypto::{SecretKey, VerifyingKey};
use crate::types::{ClientId, NetworkId, NodeId, PublicKey, Signature, Stream};

/// The longest control message that is read. An ack with 65,536 written indexes has about 450 KB.
pub const MAX_CONTROL_BYTES: usize = 1 << 20;

/// The longest control message that a node takes from a client: a key transport has about 400 bytes.
pub const MAX_UPLINK_CONTROL_BYTES: usize = 4096;

/// The protected header up to the signer's key.
const PROTECTED_HEAD: &[u8] = &[0xa3, 0x01, 0x27, 0x03, 0x18, 0x32, 0x04, 0x58, 0x20];

/// Why a control message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Longer than its reader takes.
    #[error("a control message of {len} bytes, at most {limit} are taken")]
    TooLong {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not a COSE_Sign1 with the protected header of control messages.
    #[error(
        "not a control message: expected a tagged COSE_Sign1 with protected header {{1: -8, 3: 50, 4: kid}}"
    )]
    Malformed,
    /// The signer named in the message is not the one expected.
    #[error("the control message is signed by {found}, whom the reader does not expect")]
    Signer {
        /// The key that the message names.
        found: PublicKey,
    },
    /// The signature is not valid for this kind, network and client.
    #[error("the control message's signature does not verify for this kind, network and client")]
    BadSignature,
    /// The payload is not the JSON object that the kind wants.
    #[error("the control message's fields are not those of its kind: {0}")]
    Fields(String),
    /// No control message is published on this topic.
    #[error("no control message is published on this topic")]
    Topic,
}

impl ControlError {
    /// The code for `key/fail`, if this is why a key transport was refused.
    pub const fn key_fail_code(&self) -> KeyFailCode {
        match self {
            Self::Signer { .. } | Self::BadSignature => KeyFailCode::BadSignature,
            Self::TooLong { .. } | Self::Malformed | Self::Fields(_) | Self::Topic => KeyFailCode::Malformed,
        }
    }
}

/// The signed bytes of a control message to or from `client`.
///
/// # Panics
/// Never: the fields of control messages have string keys and encode without an error.
#[allow(clippy::expect_used)]
pub fn sign<F: Fields>(network: &NetworkId, client: &ClientId, key: &SecretKey, fields: &F) -> Vec<u8> {
    let payload = serde_json::to_vec(fields).expect("control fields encode to JSON");
    sign_json(F::KIND, network, client, key, &payload)
}

/// Signs a payload that is JSON already; [`sign`] is the way to make one.
pub fn sign_json(
    kind: ControlKind,
    network: &NetworkId,
    client: &ClientId,
    key: &SecretKey,
    payload: &[u8],
) -> Vec<u8> {
    let mut protected = PROTECTED_HEAD.to_vec();
    protected.extend_from_slice(key.public().as_bytes());
    let signature = key.sign_raw(&signature_input(kind, network, client, &protected, payload));
    Sign1 { protected: &protected, payload, signature }.encode()
}

/// A control message, taken apart but not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedControl<'a> {
    protected: &'a [u8],
    payload: &'a [u8],
    signature: Signature,
    signer: PublicKey,
}

impl<'a> SignedControl<'a> {
    /// Takes a message of at most `limit` bytes apart.
    ///
    /// # Errors
    /// [`ControlError::TooLong`] or [`ControlError::Malformed`].
    pub fn decode(bytes: &'a [u8], limit: usize) -> Result<Self, ControlError> {
        if bytes.len() > limit {
            return Err(ControlError::TooLong { len: bytes.len(), limit });
        }
        let Sign1 { protected, payload, signature } =
            Sign1::decode(bytes).map_err(|_| ControlError::Malformed)?;
        let signer = protected
            .strip_prefix(PROTECTED_HEAD)
            .and_then(|kid| <[u8; 32]>::try_from(kid).ok())
            .map(PublicKey)
            .ok_or(ControlError::Malformed)?;
        Ok(Self { protected, payload, signature, signer })
    }

    /// The key that the message names as its signer's; unverified.
    pub const fn signer(&self) -> PublicKey {
        self.signer
    }

    /// The fields, unverified: fit for echoing a nonce, and for nothing else.
    pub fn unverified<F: Fields>(&self) -> Option<F> {
        self.fields().ok()
    }

    /// The fields, if `key` signed them for this kind, network and client.
    ///
    /// # Errors
    /// [`ControlError::Signer`], [`ControlError::BadSignature`] or [`ControlError::Fields`], in this order.
    pub fn verify<F: Fields>(
        &self,
        network: &NetworkId,
        client: &ClientId,
        key: &VerifyingKey,
    ) -> Result<F, ControlError> {
        if key.public() != self.signer {
            return Err(ControlError::Signer { found: self.signer });
        }
        let input = signature_input(F::KIND, network, client, self.protected, self.payload);
        key.verify_raw(&input, &self.signature).map_err(|_| ControlError::BadSignature)?;
        self.fields()
    }

    fn fields<F: Fields>(&self) -> Result<F, ControlError> {
        let fields: F =
            serde_json::from_slice(self.payload).map_err(|error| ControlError::Fields(error.to_string()))?;
        if fields.is_consistent() {
            Ok(fields)
        } else {
            Err(ControlError::Fields("out of range, or at odds with each other".to_owned()))
        }
    }
}

/// A verified control message from a node, as a client receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromNode {
    /// On `{id}/unauth`.
    Unauth(Unauth),
    /// On `{id}/forbidden`.
    Forbidden(Forbidden),
    /// On `{id}/key/success`.
    KeySuccess(KeySuccess),
    /// On `{id}/key/fail`.
    KeyFail(KeyFail),
    /// On `{id}/{stream}/datas` or `{id}/{stream}/success`.
    Ack(Ack),
    /// On `{id}/{stream}/error`.
    Error(ErrorReply),
}

/// Opens what arrived on `topic`: the client's side of every downlink. `trusted` are the keys of
/// the nodes of the client's network. Gives the node that signed along with what it says.
///
/// # Errors
/// [`ControlError`]; a message that is refused is to be ignored.
pub fn open_from_node(
    network: &NetworkId,
    client: &ClientId,
    trusted: &[VerifyingKey],
    topic: &Downlink,
    bytes: &[u8],
) -> Result<(NodeId, FromNode), ControlError> {
    let message = SignedControl::decode(bytes, MAX_CONTROL_BYTES)?;
    let signer = message.signer();
    let key =
        trusted.iter().find(|key| key.public() == signer).ok_or(ControlError::Signer { found: signer })?;
    let said = match topic {
        Downlink::Unauth => FromNode::Unauth(message.verify(network, client, key)?),
        Downlink::Forbidden => FromNode::Forbidden(message.verify(network, client, key)?),
        Downlink::KeySuccess => FromNode::KeySuccess(message.verify(network, client, key)?),
        Downlink::KeyFail => FromNode::KeyFail(message.verify(network, client, key)?),
        Downlink::Datas(stream) | Downlink::Success(stream) => {
            let ack: Ack = message.verify(network, client, key)?;
            of_its_stream(&ack.stream, stream)?;
            FromNode::Ack(ack)
        }
        Downlink::Error(stream) => {
            let error: ErrorReply = message.verify(network, client, key)?;
            of_its_stream(&error.stream, stream)?;
            FromNode::Error(error)
        }
        Downlink::Receipt(_) => return Err(ControlError::Topic),
    };
    Ok((NodeId(signer.0), said))
}

/// A broker could carry a signed ack of one stream to another's topic.
fn of_its_stream(said: &Stream, topic: &Stream) -> Result<(), ControlError> {
    if said == topic { Ok(()) } else { Err(ControlError::Topic) }
}

fn signature_input(
    kind: ControlKind,
    network: &NetworkId,
    client: &ClientId,
    protected: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let external_aad = cose::domain(kind.as_str(), network, Some(client.as_str()));
    cose::signature_input(protected, &external_aad, payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Hash, Height, MessageSeq, Timestamp};
    use proptest::prelude::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);

    fn client() -> ClientId {
        ClientId::new("devices/iot").unwrap()
    }

    fn node() -> (SecretKey, VerifyingKey) {
        let key = SecretKey::from_seed(&[7; 32]);
        let verifying = VerifyingKey::parse(&key.public()).unwrap();
        (key, verifying)
    }

    fn ack() -> Ack {
        Ack {
            stream: Stream::new("env").unwrap(),
            seq: MessageSeq(9),
            header: Hash([3; 32]),
            items: 3,
            written: vec![0, 2],
            height: Some(Height(12)),
            block: Some(Hash([4; 32])),
            server_time: Timestamp(1_767_225_600_000),
        }
    }

    fn open(bytes: &[u8]) -> Result<Ack, ControlError> {
        SignedControl::decode(bytes, MAX_CONTROL_BYTES)?.verify(&NETWORK, &client(), &node().1)
    }

    #[test]
    fn what_was_signed_is_read_back() {
        assert_eq!(open(&sign(&NETWORK, &client(), &node().0, &ack())).unwrap(), ack());
    }

    #[test]
    fn a_message_is_bound_to_kind_network_client_and_signer() {
        let (key, verifying) = node();
        let bytes = sign(&NETWORK, &client(), &key, &ack());
        let message = SignedControl::decode(&bytes, MAX_CONTROL_BYTES).unwrap();
        let other_client = ClientId::new("devices/other").unwrap();
        let bad = Err(ControlError::BadSignature);
        assert_eq!(message.verify::<Ack>(&NetworkId([2; 32]), &client(), &verifying), bad);
        assert_eq!(message.verify::<Ack>(&NETWORK, &other_client, &verifying), bad);
        let as_error = message.verify::<ErrorReply>(&NETWORK, &client(), &verifying);
        assert_eq!(as_error, Err(ControlError::BadSignature));
        let other = VerifyingKey::parse(&SecretKey::from_seed(&[8; 32]).public()).unwrap();
        let wrong_signer = message.verify::<Ack>(&NETWORK, &client(), &other);
        assert_eq!(wrong_signer, Err(ControlError::Signer { found: key.public() }));
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_refused() {
        let (key, _) = node();
        let mut json = serde_json::to_value(ack()).unwrap();
        json["new"] = serde_json::json!({"anything": [1, null]});
        let more = sign_json(ControlKind::Ack, &NETWORK, &client(), &key, json.to_string().as_bytes());
        assert_eq!(open(&more).unwrap(), ack());
        json.as_object_mut().unwrap().remove("seq");
        let less = sign_json(ControlKind::Ack, &NETWORK, &client(), &key, json.to_string().as_bytes());
        assert!(matches!(open(&less), Err(ControlError::Fields(_))));
    }

    #[test]
    fn an_ack_without_a_block_leaves_its_fields_out() {
        let ack = Ack { written: vec![], height: None, block: None, ..ack() };
        let json = serde_json::to_value(&ack).unwrap();
        assert!(json.get("height").is_none() && json.get("block").is_none());
        assert_eq!(open(&sign(&NETWORK, &client(), &node().0, &ack)).unwrap(), ack);
        let mut with_nulls = json;
        with_nulls["height"] = serde_json::Value::Null;
        with_nulls["block"] = serde_json::Value::Null;
        assert_eq!(serde_json::from_value::<Ack>(with_nulls).unwrap(), ack);
    }

    #[test]
    fn an_ack_out_of_range_or_at_odds_with_itself_is_refused() {
        for bad in [
            Ack { written: vec![2, 0], ..ack() },
            Ack { written: vec![1, 1], ..ack() },
            Ack { written: vec![3], ..ack() },
            Ack { block: None, ..ack() },
            Ack { seq: MessageSeq(0), ..ack() },
            Ack { seq: MessageSeq(MessageSeq::MAX.0 + 1), ..ack() },
        ] {
            let bytes = sign(&NETWORK, &client(), &node().0, &bad);
            assert!(matches!(open(&bytes), Err(ControlError::Fields(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_client_takes_only_nodes_that_it_trusts_and_only_on_the_right_topic() {
        let (key, verifying) = node();
        let bytes = sign(&NETWORK, &client(), &key, &ack());
        let env = Stream::new("env").unwrap();
        let on = |topic| open_from_node(&NETWORK, &client(), &[verifying], &topic, &bytes);
        let expected = (key.node_id(), FromNode::Ack(ack()));
        assert_eq!(on(Downlink::Datas(env.clone())), Ok(expected.clone()));
        assert_eq!(on(Downlink::Success(env.clone())), Ok(expected));
        assert_eq!(on(Downlink::Success(Stream::new("other").unwrap())), Err(ControlError::Topic));
        assert_eq!(on(Downlink::Error(env.clone())), Err(ControlError::BadSignature));
        assert_eq!(on(Downlink::Receipt(env.clone())), Err(ControlError::Topic));
        let stranger = open_from_node(&NETWORK, &client(), &[], &Downlink::Success(env), &bytes);
        assert_eq!(stranger, Err(ControlError::Signer { found: key.public() }));
    }

    #[test]
    fn too_long_is_refused_before_reading() {
        let bytes = sign(&NETWORK, &client(), &node().0, &ack());
        let limit = bytes.len() - 1;
        let refused = SignedControl::decode(&bytes, limit).err();
        assert_eq!(refused, Some(ControlError::TooLong { len: bytes.len(), limit }));
    }

    #[test]
    fn every_bit_flip_is_refused() {
        let bytes = sign(&NETWORK, &client(), &node().0, &ack());
        for at in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[at / 8] ^= 1 << (at % 8);
            assert!(open(&altered).is_err(), "bit {at}");
        }
        for len in 0..bytes.len() {
            assert!(open(&bytes[..len]).is_err(), "cut to {len}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(&bytes).is_err());
        }

        #[test]
        fn arbitrary_signed_json_never_panics(payload in "[\\[{]?[\"a-z:,0-9\\]}]{0,40}") {
            let bytes = sign_json(ControlKind::Ack, &NETWORK, &client(), &node().0, payload.as_bytes());
            prop_assert!(open(&bytes).is_err());
        }
    }
}
