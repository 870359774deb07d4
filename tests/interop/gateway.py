#!/usr/bin/env python3
"""A gateway written from docs/PROTOCOL.md alone, with paho-mqtt and general libraries.

It shares no code with the project: what it gets through proves that the page is enough to write a
client in another language. It asks for the node's KEM key, hands over a payload key, publishes
signed and encrypted telemetry, and checks the node's signature on everything that comes back.

Prints one JSON object: {"acks": [...], "errors": [...], "key_success": {...}}. Exit code 0 if all
messages were acknowledged.
"""

import argparse
import base64
import json
import os
import struct
import sys
import threading
import time
import zlib

import blake3
import cbor2
import paho.mqtt.client as mqtt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hmac import HMAC

RAW = serialization.Encoding.Raw
RAW_PUBLIC = serialization.PublicFormat.Raw


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def now_ms():
    return time.time_ns() // 1_000_000


def cbor(value):
    return cbor2.dumps(value, canonical=False)


# COSE_Sign1 (RFC 9052) with EdDSA.


def sign1(key, protected, aad, payload):
    signature = key.sign(cbor(["Signature1", protected, aad, payload]))
    return cbor(cbor2.CBORTag(18, [protected, {}, payload, signature]))


def open_sign1(wire, aad, trusted):
    tag = cbor2.loads(wire)
    assert tag.tag == 18
    protected, unprotected, payload, signature = tag.value
    header = cbor2.loads(protected)
    assert header[1] == -8 and header[3] == 50 and unprotected == {}
    assert header[4] in trusted, "signed by a node that is not of this network"
    key = Ed25519PublicKey.from_public_bytes(header[4])
    key.verify(signature, cbor(["Signature1", protected, aad, payload]))
    return json.loads(payload)


# HPKE base mode (RFC 9180): DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305.

KEM_SUITE = b"KEM" + struct.pack(">H", 0x0020)
HPKE_SUITE = b"HPKE" + struct.pack(">HHH", 0x0020, 0x0001, 0x0003)


def hmac(key, data):
    mac = HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


def labeled_extract(suite, salt, label, ikm):
    return hmac(salt or bytes(32), b"HPKE-v1" + suite + label + ikm)


def labeled_expand(suite, prk, label, info, length):
    info = struct.pack(">H", length) + b"HPKE-v1" + suite + label + info
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac(prk, block + info + bytes([counter]))
        out += block
        counter += 1
    return out[:length]


def hpke_seal(public, info, plaintext):
    ephemeral = X25519PrivateKey.generate()
    enc = ephemeral.public_key().public_bytes(RAW, RAW_PUBLIC)
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    eae = labeled_extract(KEM_SUITE, b"", b"eae_prk", shared)
    secret = labeled_expand(KEM_SUITE, eae, b"shared_secret", enc + public, 32)
    psk_id = labeled_extract(HPKE_SUITE, b"", b"psk_id_hash", b"")
    context = b"\x00" + psk_id + labeled_extract(HPKE_SUITE, b"", b"info_hash", info)
    prk = labeled_extract(HPKE_SUITE, secret, b"secret", b"")
    key = labeled_expand(HPKE_SUITE, prk, b"key", context, 32)
    nonce = labeled_expand(HPKE_SUITE, prk, b"base_nonce", context, 12)
    return enc, ChaCha20Poly1305(key).encrypt(nonce, plaintext, b"")


# Merkle tree of RFC 9162's shape with BLAKE3.


def merkle_root(leaves):
    level = [blake3.blake3(b"\x00" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [blake3.blake3(b"\x01" + p[0] + p[1]).digest() if len(p) == 2 else p[0] for p in pairs]
    return level[0]


class Gateway:
    def __init__(self, options):
        self.options = options
        self.client = options.client
        self.network = bytes.fromhex(options.network)
        self.nodes = {bytes.fromhex(node) for node in options.nodes.split(",")}
        self.key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(options.seed))
        self.public = self.key.public_key().public_bytes(RAW, RAW_PUBLIC)
        self.nonce = os.urandom(16)
        self.kem = None
        self.result = {"acks": [], "errors": [], "key_success": None, "unauth": None}
        self.changed = threading.Condition()

    def aad(self, kind):
        return cbor(["ledgermq", 1, kind, self.network, self.client])

    def token(self):
        seconds = int(time.time())
        claims = {"sub": self.client, "aud": self.network.hex(), "iat": seconds, "exp": seconds + 600}
        parts = [b64(json.dumps(part).encode()) for part in ({"alg": "EdDSA", "typ": "JWT"}, claims)]
        return ".".join(parts + [b64(self.key.sign(".".join(parts).encode()))])

    def telemetry(self, seq):
        event_time = now_ms()
        items = [("th-01", "temperature", 1, 20.5 + seq, "Cel"), ("th-01", "humidity", 2, 40 + seq, "%RH")]
        names = ("deviceId", "serviceId", "num", "value", "unit")
        body = json.dumps(
            {
                "count": len(items),
                "msg": "from another language",
                "eventTime": event_time,
                "data": [dict(zip(names, item)) for item in items],
            }
        ).encode()
        leaves = [cbor([self.client, d, s, n, event_time, value, unit]) for d, s, n, value, unit in items]
        header = cbor(
            {
                1: self.client,
                2: self.options.stream,
                3: seq,
                4: event_time,
                5: len(items),
                6: merkle_root(leaves),
                7: blake3.blake3(body).digest(),
            }
        )
        signed = sign1(self.key, b"\xa1\x01\x27", cbor(["ledgermq", 1, "telemetry", self.network]), header)
        encoding = seq % 2 * 2  # as is, and raw DEFLATE, in turn
        if encoding == 2:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
            body = deflate.compress(body) + deflate.flush()
        content = b"\x83" + signed + cbor(encoding) + cbor(body)
        topic = f"{self.client}/{self.options.stream}"
        protected = cbor({1: 24, 4: self.kid, 6: struct.pack(">Q", seq)})
        external = cbor(["ledgermq", 1, "telemetry", self.network, topic])
        nonce = bytes(4) + struct.pack(">Q", seq)
        aad = cbor(["Encrypt0", protected, external])
        sealed = ChaCha20Poly1305(self.payload_key).encrypt(nonce, content, aad)
        return topic, cbor(cbor2.CBORTag(16, [protected, {}, sealed]))

    def send_key(self, forbidden):
        self.payload_key = os.urandom(32)
        enc, sealed = hpke_seal(unb64(forbidden["kem_key"]), self.aad("key"), self.payload_key)
        fields = {
            "kem_kid": forbidden["kem_kid"],
            "enc": b64(enc),
            "ct": b64(sealed),
            "epoch": max(now_ms(), forbidden["last_epoch"] + 1),
            "nonce": b64(os.urandom(16)),
            "time": now_ms(),
        }
        self.kid = unb64(forbidden["kem_kid"])[:8] + blake3.blake3(enc).digest()[:8]
        self.first_seq = forbidden["last_seq"] + 1
        protected = cbor({1: -8, 3: 50, 4: self.public})
        message = sign1(self.key, protected, self.aad("key"), json.dumps(fields).encode())
        self.mqtt.publish(f"{self.client}/key", message, qos=1)

    def on_message(self, _client, _userdata, message):
        kind = message.topic[len(self.client) + 1 :]
        stream, _, last = kind.rpartition("/")
        signed_kind = {"datas": "ack", "success": "ack", "error": "error"}.get(last, kind)
        if stream == "key":
            signed_kind = kind
        try:
            fields = open_sign1(message.payload, self.aad(signed_kind), self.nodes)
        except (InvalidSignature, AssertionError, KeyError, ValueError) as problem:
            fields, signed_kind = {"code": f"refused by the client: {problem!r}", "on": kind}, "error"
        with self.changed:
            if signed_kind == "forbidden" and fields.get("nonce") == b64(self.nonce) and not self.kem:
                self.kem = fields
                self.send_key(fields)
            elif signed_kind == "key/success":
                self.result["key_success"] = fields
            elif signed_kind == "unauth":
                self.result["unauth"] = fields
            elif signed_kind == "ack":
                self.result["acks"].append({"on": last, **fields})
            elif signed_kind in ("error", "key/fail"):
                self.result["errors"].append(fields)
            self.changed.notify_all()

    def wait(self, condition, seconds=30):
        with self.changed:
            return self.changed.wait_for(lambda: condition() or self.result["errors"] or self.result["unauth"], seconds)

    def run(self):
        version = mqtt.MQTTv5 if self.options.v5 else mqtt.MQTTv311
        extra = {} if self.options.v5 else {"clean_session": True}
        self.mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=self.client, protocol=version, **extra)
        self.mqtt.username_pw_set("interop", self.token())
        self.mqtt.on_message = self.on_message
        subscribed = threading.Event()
        self.mqtt.on_subscribe = lambda *_: subscribed.set()
        self.mqtt.connect(self.options.host, self.options.port)
        self.mqtt.loop_start()
        self.mqtt.subscribe(f"{self.client}/#", qos=1)
        assert subscribed.wait(10), "no SUBACK"
        self.mqtt.publish(f"{self.client}/key", self.nonce, qos=1)
        self.wait(lambda: self.result["key_success"])
        if self.result["key_success"]:
            for at in range(self.options.count):
                topic, wire = self.telemetry(self.first_seq + at)
                self.mqtt.publish(topic, wire, qos=1).wait_for_publish(30)
            self.wait(lambda: len(self.result["acks"]) >= self.options.count)
        self.mqtt.disconnect()
        self.mqtt.loop_stop()
        print(json.dumps(self.result))
        return 0 if len(self.result["acks"]) == self.options.count and not self.result["errors"] else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--seed", required=True, help="Ed25519 seed, hex")
    parser.add_argument("--network", required=True, help="network id, hex")
    parser.add_argument("--nodes", required=True, help="node ids, hex, comma-separated")
    parser.add_argument("--stream", default="env")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--v5", action="store_true", help="MQTT 5 (default: 3.1.1)")
    sys.exit(Gateway(parser.parse_args()).run())


if __name__ == "__main__":
    main()
