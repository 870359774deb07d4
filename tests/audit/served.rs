//! Certified blocks over HTTP, as docs/API.md describes the answer; some of them lies.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use ledgermq::codec;
use ledgermq::ledger::{Block, Certificate};

/// Blocks in an answer.
const PAGE: usize = 3;

/// Serves these blocks until the test ends, and says where.
pub fn serve(blocks: Vec<(Block, Option<Certificate>)>) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let mut header = String::new();
            while reader.read_line(&mut header).unwrap() > 2 {
                header.clear();
            }
            let from =
                line.split("/v1/certified-blocks?from=").nth(1).and_then(|rest| rest.split(' ').next());
            let from: usize = from.map_or(usize::MAX, |from| from.parse().unwrap());
            let body: Vec<u8> = blocks.iter().skip(from - 1).take(PAGE).flat_map(frame).collect();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
                .unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    url
}

fn frame(block: &(Block, Option<Certificate>)) -> Vec<u8> {
    let bytes = codec::encode(block);
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
}
