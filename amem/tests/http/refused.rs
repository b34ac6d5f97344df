//! Requests that are answered before their bodies are read: without a key, too large, for no path.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use amem::http::{Identity, KeyHeader, Limits};
use amem::keys::{Grant, KeyFile};
use amem::server::{Options, Server};

use super::common::in_ram;
use super::front::Front;

const BODY_BYTES: usize = 4096;

/// A server that needs a key, and takes small bodies.
fn guarded(dir: &tempfile::TempDir) -> Front {
    let keys = KeyFile::at(dir.path().join("keys.json"));
    keys.create(Grant::Admin).unwrap();
    let identity = Identity::new(KeyHeader::Authorization).keys(keys);
    let mut limits = Limits::default();
    limits.body_bytes = BODY_BYTES;
    Front::start(Server::new(in_ram(), identity, Options::default()).router(), limits)
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn to(front: &Front) -> Self {
        let stream = TcpStream::connect(front.url("").strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn head(&mut self, path: &str, more: &str, body_bytes: usize) {
        self.send(
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{more}content-length: {body_bytes}\r\n\r\n").as_bytes(),
        );
    }

    /// The status of the next answer.
    fn status(&mut self) -> u16 {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the connection was closed after {lines:?}");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let length =
            lines.iter().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        self.0.read_exact(&mut vec![0; length]).unwrap();
        lines[0].split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Whether the server has closed it.
    fn ended(&mut self) -> bool {
        // A server that closes it while something is on the way resets it.
        self.0.read(&mut [0]).map_or(true, |read| read == 0)
    }
}

#[test]
fn a_client_that_sends_its_body_late_is_answered_and_can_ask_again() {
    let dir = tempfile::tempdir().unwrap();
    let front = guarded(&dir);
    for (path, refusal) in [("/v1/messages", 401), ("/v1/nothing", 404), ("/v1/models", 405)] {
        let mut connection = Connection::to(&front);
        for _ in 0..3 {
            connection.head(path, "", BODY_BYTES);
            // The answer does not wait for the body.
            assert_eq!(connection.status(), refusal, "{path}");
            for part in [[b' '; BODY_BYTES / 2]; 2] {
                connection.send(&part);
            }
        }
    }
}

#[test]
fn a_body_that_is_longer_than_any_may_be_ends_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let front = guarded(&dir);
    let mut connection = Connection::to(&front);
    connection.head("/v1/messages", "", usize::MAX / 2);
    assert_eq!(connection.status(), 401);
    // It ends at some point after the limit; until then it takes what is sent.
    let written = (0..1 << 14).try_for_each(|_| connection.0.get_mut().write_all(&[b' '; 1 << 16]));
    assert!(written.is_err() && connection.ended());
}

#[test]
fn a_client_that_asks_whether_to_send_its_body_is_told_not_to() {
    let dir = tempfile::tempdir().unwrap();
    let front = guarded(&dir);
    let mut connection = Connection::to(&front);
    connection.head("/v1/messages", "expect: 100-continue\r\n", BODY_BYTES);
    assert_eq!(connection.status(), 401);
    assert!(connection.ended());
}
