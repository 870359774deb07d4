//! MQTT by hand, byte by byte, so that tests can send what no library would, and see each packet that
//! comes back.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Connect<'a> {
    pub client: &'a str,
    pub token: Option<&'a str>,
    pub clean: bool,
    pub will: Option<(&'a str, bool)>,
    pub keep_alive: u16,
    /// MQTT 5 only.
    pub session_expiry: u32,
}

impl<'a> Connect<'a> {
    pub fn new(client: &'a str, token: &'a str) -> Self {
        Self { client, token: Some(token), clean: true, will: None, keep_alive: 60, session_expiry: 0 }
    }

    pub fn stranger(client: &'a str) -> Self {
        Self { token: None, ..Self::new(client, "") }
    }

    pub fn persistent(self) -> Self {
        Self { clean: false, session_expiry: 3600, ..self }
    }
}

/// One packet: type and flags, then the body.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    pub head: u8,
    pub body: Vec<u8>,
}

/// MQTT by hand.
pub struct Raw {
    pub level: u8,
    pub stream: TcpStream,
    next_id: u16,
}

impl Raw {
    /// A connection without a CONNECT yet; `level` is 3, 4 (MQTT 3.1.1) or 5.
    pub async fn dial(address: impl ToSocketAddrs, level: u8) -> Self {
        Self::try_dial(address, level).await.unwrap()
    }

    /// The same where nobody may listen.
    pub async fn try_dial(address: impl ToSocketAddrs, level: u8) -> std::io::Result<Self> {
        Ok(Self { level, stream: TcpStream::connect(address).await?, next_id: 1 })
    }

    /// Sends CONNECT; the return or reason code of the CONNACK, `None` if there was none.
    pub async fn connect(&mut self, connect: &Connect<'_>) -> Option<u8> {
        self.connack(connect).await.map(|(_, code)| code)
    }

    /// The same of a client that is let in; whether the CONNACK says that a session was present.
    pub async fn resume(&mut self, connect: &Connect<'_>) -> bool {
        let (present, code) = self.connack(connect).await.unwrap();
        assert_eq!(code, 0);
        present
    }

    /// Sends CONNECT; whether the CONNACK says that a session was present, and its code.
    pub async fn connack(&mut self, connect: &Connect<'_>) -> Option<(bool, u8)> {
        self.send(0x10, &connect_body(self.level, connect)).await;
        let connack = self.receive().await?;
        assert_eq!(connack.head, 0x20);
        Some((connack.body[0] == 1, connack.body[1]))
    }

    /// Sends PUBLISH and returns its packet id.
    pub async fn publish(&mut self, topic: &str, qos: u8, retain: bool, payload: &[u8]) -> u16 {
        let packet_id = self.packet_id();
        let mut body = string(topic);
        if qos > 0 {
            body.extend(packet_id.to_be_bytes());
        }
        if self.level == 5 {
            body.push(0);
        }
        body.extend(payload);
        self.send(0x30 | qos << 1 | u8::from(retain), &body).await;
        packet_id
    }

    /// Waits for the PUBACK of `packet_id`: its reason code (0 on 3.1.1), `None` if the connection ended.
    pub async fn puback(&mut self, packet_id: u16) -> Option<u8> {
        let packet = self.receive().await?;
        assert_eq!(packet.head, 0x40, "{packet:?}");
        assert_eq!(packet.body[..2], packet_id.to_be_bytes());
        Some(packet.body.get(2).copied().unwrap_or(0))
    }

    /// Subscribes; the return or reason code, `None` if the connection ended.
    pub async fn subscribe(&mut self, filter: &str) -> Option<u8> {
        let mut body = self.packet_id().to_be_bytes().to_vec();
        if self.level == 5 {
            body.push(0);
        }
        body.extend(string(filter));
        body.push(1);
        self.send(0x82, &body).await;
        let suback = self.receive().await?;
        assert_eq!(suback.head, 0x90, "{suback:?}");
        suback.body.last().copied()
    }

    pub async fn send(&mut self, head: u8, body: &[u8]) {
        let mut packet = vec![head];
        let mut rest = body.len();
        loop {
            let byte = u8::try_from(rest % 128).unwrap();
            rest /= 128;
            packet.push(if rest > 0 { byte | 0x80 } else { byte });
            if rest == 0 {
                break;
            }
        }
        packet.extend(body);
        // The broker may hang up in the middle of a packet; what follows from that is what is tested.
        let _ = self.stream.write_all(&packet).await;
    }

    /// The next packet, `None` if the connection ended.
    pub async fn receive(&mut self) -> Option<Packet> {
        tokio::time::timeout(PATIENCE, self.read_packet()).await.expect("an answer or the end")
    }

    /// Whether the broker still answers a PING, after whatever was sent before.
    pub async fn is_alive(&mut self) -> bool {
        self.send(0xc0, &[]).await;
        loop {
            match self.receive().await {
                None => return false,
                Some(packet) if packet.head == 0xd0 => return true,
                Some(_) => {}
            }
        }
    }

    async fn read_packet(&mut self) -> Option<Packet> {
        let head = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some(Packet { head, body })
    }

    fn packet_id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id
    }
}

fn connect_body(level: u8, connect: &Connect<'_>) -> Vec<u8> {
    let mut flags = u8::from(connect.clean) << 1;
    if connect.token.is_some() {
        flags |= 0xc0;
    }
    if let Some((_, retain)) = connect.will {
        flags |= 0x04 | u8::from(retain) << 5;
    }
    let mut body = string("MQTT");
    body.extend([level, flags]);
    body.extend(connect.keep_alive.to_be_bytes());
    if level == 5 {
        body.extend([5, 0x11]);
        body.extend(connect.session_expiry.to_be_bytes());
    }
    body.extend(string(connect.client));
    if let Some((topic, _)) = connect.will {
        if level == 5 {
            body.push(0);
        }
        body.extend(string(topic));
        body.extend(string("gone"));
    }
    if let Some(token) = connect.token {
        body.extend(string("account"));
        body.extend(string(token));
    }
    body
}

pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
