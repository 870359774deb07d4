#!/usr/bin/env python3
"""Makes the vectors that README.md lists as made by this script.

Written from docs/PROTOCOL.md alone, with none of the program's code, so that the two check each
other. Needs Python 3.9 and the packages `cryptography` and `blake3`. The output is always the same.
"""
import base64, hmac, json, pathlib, struct, zlib
from hashlib import sha256

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

HERE = pathlib.Path(__file__).parent
KEYS = json.loads((HERE / "keys.json").read_text())
NETWORK = bytes.fromhex(KEYS["network_id"])
CLIENT = KEYS["client_id"]
SEED = {case["who"]: bytes.fromhex(case["seed"]) for case in KEYS["cases"] if "seed" in case}
KEM = next(case for case in KEYS["cases"] if case["who"] == "kem")
NOW = 1767225600000  # 2026-01-01T00:00:00Z


def fixed(name, length=32):
    """Bytes that look random and are always the same."""
    return blake3(b"ledgermq vectors " + name.encode()).digest(length=length)


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# CBOR, as much of it as the protocol has.
def head(major, value):
    if value < 24:
        return bytes([major << 5 | value])
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << 8 * size:
            return bytes([major << 5 | code]) + value.to_bytes(size, "big")
    raise ValueError(value)


def cbor(value):
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(cbor(part) for part in value)
    if isinstance(value, dict):
        return head(5, len(value)) + b"".join(cbor(k) + cbor(v) for k, v in value.items())
    raise TypeError(value)


def public(who):
    return Ed25519PrivateKey.from_private_bytes(SEED[who]).public_key().public_bytes_raw()


def sign1(who, protected, aad, payload):
    """A tagged COSE_Sign1."""
    tbs = cbor(["Signature1", protected, aad, payload])
    signature = Ed25519PrivateKey.from_private_bytes(SEED[who]).sign(tbs)
    return b"\xd2" + cbor([protected, {}, payload, signature])


def control(kind, who, fields, network=NETWORK, client=CLIENT):
    protected = cbor({1: -8, 3: 50, 4: public(who)})
    aad = cbor(["ledgermq", 1, kind, network, client])
    return sign1(who, protected, aad, json.dumps(fields).encode())


# HPKE (RFC 9180) base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305.
def extract(salt, data):
    return hmac.new(salt or bytes(32), data, sha256).digest()


def expand(prk, info, length):
    out, block, at = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([at]), sha256).digest()
        out, at = out + block, at + 1
    return out[:length]


def labeled_extract(suite, salt, label, data):
    return extract(salt, b"HPKE-v1" + suite + label + data)


def labeled_expand(suite, prk, label, info, length):
    return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


def hpke_seal(recipient, info, plaintext, ephemeral):
    secret = X25519PrivateKey.from_private_bytes(ephemeral)
    enc = secret.public_key().public_bytes_raw()
    shared = secret.exchange(X25519PublicKey.from_public_bytes(recipient))
    suite = b"KEM" + (0x20).to_bytes(2, "big")
    prk = labeled_extract(suite, b"", b"eae_prk", shared)
    shared = labeled_expand(suite, prk, b"shared_secret", enc + recipient, 32)
    suite = b"HPKE" + b"".join(part.to_bytes(2, "big") for part in (0x20, 1, 3))
    context = b"\0" + labeled_extract(suite, b"", b"psk_id_hash", b"")
    context += labeled_extract(suite, b"", b"info_hash", info)
    secret = labeled_extract(suite, shared, b"secret", b"")
    key = labeled_expand(suite, secret, b"key", context, 32)
    nonce = labeled_expand(suite, secret, b"base_nonce", context, 12)
    return enc, ChaCha20Poly1305(key).encrypt(nonce, plaintext, b"")


def hpke_cases():
    node = public("node")
    for name in ("one", "two"):
        payload_key, ephemeral = fixed("payload key " + name), fixed("ephemeral " + name)
        info = cbor(["ledgermq", 1, "key", NETWORK, CLIENT])
        enc, ct = hpke_seal(bytes.fromhex(KEM["public"]), info, payload_key, ephemeral)
        yield {
            "kem_private": KEM["private"], "kem_key": KEM["public"], "info": info.hex(),
            "payload_key": payload_key.hex(), "ephemeral_private": ephemeral.hex(),
            "enc": enc.hex(), "ct": ct.hex(), "node": node.hex(),
            "kid": (node[:8] + blake3(enc).digest()[:8]).hex(),
        }


def control_cases():
    nonce, header = b64(fixed("nonce", 16)), b64(fixed("header"))
    kid, kem_kid = public("node")[:8] + fixed("kid", 8), public("node")[:8] + fixed("kem kid", 8)
    forbidden = {
        "reason": "key_expired", "kem_kid": b64(kem_kid), "kem_key": b64(bytes.fromhex(KEM["public"])),
        "kem_not_after": NOW + 86400000, "last_seq": 70000, "last_epoch": NOW, "server_time": NOW,
    }
    cases = [
        ("unauth", {"reason": "not_registered", "server_time": NOW}),
        ("unauth", {"reason": "revoked", "server_time": NOW, "unknown": {"is": ["ignored"]}}),
        ("forbidden", forbidden),
        ("key/success", {"kid": b64(kid), "nonce": nonce, "not_after": NOW + 86400000,
                         "max_messages": 1048576, "last_seq": 9, "server_time": NOW}),
        ("key/fail", {"nonce": nonce, "code": "stale_epoch", "detail": "use a higher epoch",
                      "last_epoch": NOW, "server_time": NOW}),
        ("key/fail", {"code": "malformed", "detail": "not a control message", "last_epoch": 0,
                      "server_time": NOW}),
        ("ack", {"stream": "env", "seq": 2, "header": header, "items": 3, "written": [],
                 "server_time": NOW}),
        ("error", {"stream": "env", "seq": 3, "header": header, "code": "bad_root",
                   "detail": "the items do not lead to the root", "server_time": NOW}),
        ("error", {"stream": "env", "code": "malformed", "detail": "not an envelope", "server_time": NOW}),
    ]
    for kind, fields in cases:
        yield {"kind": kind, "signer": "node", "fields": fields, "bytes": control(kind, "node", fields).hex()}


def token(claims, header=None, who="client"):
    parts = [header or {"typ": "JWT", "alg": "EdDSA"}, claims]
    text = ".".join(b64(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    signature = Ed25519PrivateKey.from_private_bytes(SEED[who]).sign(text.encode())
    return text + "." + b64(signature)


def token_cases():
    now = NOW // 1000
    good = {"sub": CLIENT, "aud": NETWORK.hex(), "iat": now, "exp": now + 3600}
    return [
        {"what": "good", "token": token(good), "now": NOW, "valid": True},
        {"what": "good for 60 s after exp", "token": token(good), "now": NOW + 3660000, "valid": True},
        {"what": "expired", "token": token(good), "now": NOW + 3661000, "valid": False},
        {"what": "iat 60 s ahead", "token": token(good), "now": NOW - 60000, "valid": True},
        {"what": "iat 61 s ahead", "token": token(good), "now": NOW - 61000, "valid": False},
        {"what": "longer than an hour", "token": token({**good, "exp": now + 3601}), "now": NOW, "valid": False},
        {"what": "another client", "token": token({**good, "sub": "devices/x"}), "now": NOW, "valid": False},
        {"what": "another network", "token": token({**good, "aud": "00" * 32}), "now": NOW, "valid": False},
        {"what": "no iat", "token": token({k: v for k, v in good.items() if k != "iat"}), "now": NOW,
         "valid": False},
        {"what": "signed by another key", "token": token(good, who="node"), "now": NOW, "valid": False},
        {"what": "alg none", "token": token(good, {"alg": "none"}), "now": NOW, "valid": False},
        {"what": "alg none, unsigned", "token": token(good, {"alg": "none"}).rsplit(".", 1)[0] + ".",
         "now": NOW, "valid": False},
        {"what": "alg HS256", "token": token(good, {"alg": "HS256"}), "now": NOW, "valid": False},
        {"what": "a critical header parameter", "token": token(good, {"alg": "EdDSA", "crit": ["x"], "x": 1}),
         "now": NOW, "valid": False},
    ]


ITEM = '{"deviceId":"d","serviceId":"s","num":1,"value":1}'


def body(count="1", time="5", data=ITEM, more=""):
    return '{"count":%s,"eventTime":%s,"data":[%s]%s}' % (count, time, data, more)


def body_cases():
    def good(text, time, values):
        return {"body": text, "eventTime": time, "values": values}

    def bad(text, code):
        return {"body": text, "code": code}

    def with_value(value):
        return body(data='{"deviceId":"d","serviceId":"s","num":1,"value":%s}' % value)

    yield good(body(), 5, [{"integer": "1"}])
    yield good(" " + body(more=' ,"x":{"y":[null,true,-1.5e3]},"msg":5') + "\n", 5, [{"integer": "1"}])
    yield good(body(time='"2026-01-01T01:00:00.9999+01:00"'), NOW + 999, [{"integer": "1"}])
    yield good(body("2", data=ITEM + "," + ITEM.replace('"num":1', '"num":4294967295')), 5,
               [{"integer": "1"}, {"integer": "1"}])
    for text, value in [("-0", 0), ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63))]:
        yield good(with_value(text), 5, [{"integer": str(value)}])
    for text in ["0.0", "-0.0", "1e0", "9223372036854775808", "-9223372036854775809", "1e-400", "0.1"]:
        yield good(with_value(text), 5, [{"float": struct.pack(">d", float(text)).hex()}])
    yield good(with_value('"\\ud83d\\ude00\\n"'), 5, [{"text": "\U0001f600\n"}])
    yield good(with_value("false"), 5, [{"boolean": False}])
    yield good(body(time="-0"), 0, [{"integer": "1"}])
    yield good(body(more=',"x":' + "[" * 63 + "]" * 63), 5, [{"integer": "1"}])
    for count in ("0", "2", "-1", "65537"):
        yield bad(body(count), "count_mismatch")
    for text in [
        body("0", data=""), body("1.0"), body('"1"'), body("null"), body(time="1.0"), body(time="1e3"), body(time="-1"),
        body(time="253402300800000"), body(time='"2026-01-01"'), body(time='"2026-01-01T00:00:60Z"'),
        body(time='"2026-02-29T00:00:00Z"'), body(time='"1969-12-31T23:59:59Z"'),
        body("2", data=ITEM + "," + ITEM), body(more=',"count":1'), body(more=',"x":{"a":1,"\\u0061":2}'),
        body(more=',"x":"\\u0000"'), body(more=',"\\u0000":1'), body(more=',"x":"\\ud800"'), body(more=',"x":"\\udc00"'),
        body(more=',"x":' + "[" * 64 + "]" * 64), body(more=","), body() + "x", "\ufeff" + body(), "", "[]", "{}",
        with_value("null"), with_value("[]"), with_value("1e400"), with_value("01"), with_value("+1"), with_value("NaN"),
        with_value('"%s"' % ("x" * 1025)),
        body(data=ITEM.replace('"d"', '""')), body(data=ITEM.replace('"d"', '"%s"' % ("x" * 129))),
        body(data=ITEM.replace('"num":1', '"num":4294967296')), body(data=ITEM.replace('"num":1', '"num":1.0')),
        body(data=ITEM.replace('"value"', '"unit":null,"value"')),
        body(data=ITEM.replace('"value"', '"unit":"%s","value"' % ("x" * 65))),
        body(data=ITEM.replace('"serviceId":"s",', "")),
    ]:
        yield bad(text, "malformed")


def merkle(leaves):
    def root(hashes):
        if len(hashes) == 1:
            return hashes[0]
        split = 1
        while split * 2 < len(hashes):
            split *= 2
        return blake3(b"\x01" + root(hashes[:split]) + root(hashes[split:])).digest()

    return root([blake3(b"\x00" + leaf).digest() for leaf in leaves])


def telemetry_cases():
    """Messages as a faulty or hostile client could make them, with the code that a node answers."""
    text = body(time=str(NOW)).encode()
    item = cbor([CLIENT, "d", "s", 1, NOW, 1, None])
    good = {1: CLIENT, 2: "env", 3: 7, 4: NOW, 5: 1, 6: merkle([item]), 7: blake3(text).digest()}
    payload_key = fixed("payload key one")
    kid = public("node")[:8] + fixed("kid", 8)

    def wire(header=good, body=text, encoding=0, who="client", network=NETWORK, seq=7, topic=CLIENT + "/env",
             protected=None, content=None, signed=cbor({1: -8})):
        message = sign1(who, signed, cbor(["ledgermq", 1, "telemetry", network]), cbor(header))
        content = content or b"\x83" + message + cbor(encoding) + cbor(body)
        protected = protected or cbor({1: 24, 4: kid, 6: seq.to_bytes(8, "big")})
        aad = cbor(["Encrypt0", protected, cbor(["ledgermq", 1, "telemetry", network, topic])])
        nonce = bytes(4) + seq.to_bytes(8, "big")
        return b"\xd0" + cbor([protected, {}, ChaCha20Poly1305(payload_key).encrypt(nonce, content, aad)])

    def deflate(data):
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        return compressor.compress(data) + compressor.flush()

    def case(what, code, data):
        return {"what": what, "code": code, "stream": "env", "now": NOW, "payload_key": payload_key.hex(),
                "wire": data.hex()}

    plain = b"\x83" + sign1("client", cbor({1: -8}), cbor(["ledgermq", 1, "telemetry", NETWORK]), cbor(good))
    altered = text.replace(b'"value":1', b'"value":2')
    two = text.replace(b'"count":1', b'"count":2')
    later = body(time=str(NOW + 300001)).encode()
    later_item = cbor([CLIENT, "d", "s", 1, NOW + 300001, 1, None])
    bomb = deflate(b" " * (17 << 20))
    with_hash = lambda data: {**good, 7: blake3(data).digest()}
    return [
        case("good", None, wire()),
        case("good, DEFLATE", None, wire(body=deflate(text), encoding=2)),
        case("good, and says which numbers were never used", None, wire({**good, 8: 3})),
        case("plaintext of a client that may not", "encryption_required", plain + cbor(0) + cbor(text)),
        case("empty", "malformed", b""),
        case("not tagged", "malformed", wire()[1:]),
        case("a byte follows", "malformed", wire() + b"\0"),
        case("another algorithm", "malformed", wire(protected=cbor({1: 3, 4: kid, 6: bytes(7) + b"\7"}))),
        case("seq in 7 bytes", "malformed", wire(protected=cbor({1: 24, 4: kid, 6: bytes(6) + b"\7"}))),
        case("seq 0", "malformed", wire(seq=0)),
        case("seq 2^53", "malformed", wire(seq=2**53)),
        case("sealed for another topic", "bad_envelope", wire(topic=CLIENT + "/other")),
        case("sealed for another network", "bad_envelope", wire(network=bytes(32))),
        case("content is garbage", "malformed", wire(content=b"\x83garbage")),
        case("signed header wrapped in a byte string", "malformed", wire(
            content=cbor([plain[1:], 0, text]))),
        case("signed with a kid in the header", "malformed", wire(signed=cbor({1: -8, 4: b"x"}))),
        case("signed by another", "bad_signature", wire(who="node")),
        case("signed for another stream", "wrong_topic", wire({**good, 2: "other"})),
        case("signed for another client", "wrong_topic", wire({**good, 1: "devices/x"})),
        case("another seq in the header", "bad_envelope", wire({**good, 3: 8})),
        case("count 0", "malformed", wire({**good, 5: 0})),
        case("unused numbers not below seq", "malformed", wire({**good, 8: 7})),
        case("header keys out of order", "malformed", wire({2: "env", **{k: good[k] for k in (1, 3, 4, 5, 6, 7)}})),
        case("unknown encoding", "bad_encoding", wire(encoding=3)),
        case("not zstd", "bad_encoding", wire(encoding=1)),
        case("a byte follows the DEFLATE stream", "bad_encoding", wire(body=deflate(text) + b"\0", encoding=2)),
        case("DEFLATE in a zlib wrapper", "bad_encoding", wire(body=zlib.compress(text), encoding=2)),
        case("decompresses to 17 MiB", "too_large", wire(body=bomb, encoding=2)),
        case("another body", "bad_body", wire(body=altered)),
        case("eventTime is not the header's", "bad_body", wire({**good, 4: NOW + 1})),
        case("not JSON", "malformed", wire(with_hash(b"x"), b"x")),
        case("count in the body", "count_mismatch", wire(with_hash(two), two)),
        case("count in the header", "count_mismatch", wire({**good, 5: 2})),
        case("items of another root", "bad_root", wire(with_hash(altered), altered)),
        case("more than 5 min ahead", "clock_ahead", wire(
            {**with_hash(later), 4: NOW + 300001, 6: merkle([later_item])}, later)),
    ]


def window_cases():
    one, two = fixed("header one").hex(), fixed("header two").hex()
    steps = [
        (5, one, "new"), (5, one, "seen"), (5, two, "reused"), (4, two, "new"), (4, one, "reused"), (1, one, "new"),
        (262, one, "new"), (6, one, "new"), (5, two, "too_old"), (5, one, "too_old"), (4, two, "too_old"),
        (262, two, "reused"), (2**53 - 1, one, "new"), (262, one, "too_old"), (2**53 - 257, one, "new"),
        (2**53 - 258, one, "too_old"),
    ]
    return [{"seq": seq, "header": header, "verdict": verdict} for seq, header, verdict in steps]


def topic_cases():
    publish = {"key": True, "env": True, "A-1_x": True, "": False, "unauth": False, "forbidden": False, "update": False,
               "key/success": False, "env/success": False, "+": False, "#": False, "x" * 64: True, "x" * 65: False}
    subscribe = {"#": True, "+": True, "+/success": True, "env/error": True, "key/#": True, "": False, "a+": False,
                 "#/x": False}
    for rest, allowed in publish.items():
        yield {"publish": CLIENT + "/" + rest, "allowed": allowed}
    for topic in ("devices/other/env", CLIENT, CLIENT + "2/env", "$SYS/broker"):
        yield {"publish": topic, "allowed": False}
    for rest, allowed in subscribe.items():
        yield {"subscribe": CLIENT + "/" + rest, "allowed": allowed}
    for topic in ("#", "devices/#", "devices/+/env", CLIENT, CLIENT + "2/#", "$share/g/" + CLIENT + "/#"):
        yield {"subscribe": topic, "allowed": False}


def write(name, note, cases):
    document = {"note": note, "network_id": NETWORK.hex(), "client_id": CLIENT, "cases": list(cases)}
    (HERE / (name + ".json")).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    write("hpke", "payload keys sealed with HPKE; ephemeral_private is the sender's X25519 key", hpke_cases())
    write("control_more", "the kinds and optional fields that control.json has not", control_cases())
    write("token", "JWTs of the client of keys.json; now in milliseconds, at most an hour allowed", token_cases())
    write("body", "JSON bodies: what they say, or the code that refuses them; floats as their 64 bits", body_cases())
    write("telemetry_refused", "messages with the code that a node answers; null: accepted", telemetry_cases())
    write("window", "one client's messages in this order; 'new' ones are accepted", window_cases())
    write("topics", "what the client may publish and subscribe to", topic_cases())
