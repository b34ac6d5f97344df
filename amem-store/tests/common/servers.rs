//! Real servers, each started for one test on a port of its own and killed at its end.
//!
//! A server's program is looked for in the environment variable that is named with it, then in `PATH`. A test whose server
//! is not installed says so and passes; with `AMEM_REQUIRE_SERVERS=1` it fails.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "not every test uses all of it")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The command that starts a server on a port, in a directory.
type Start = dyn Fn(u16, &Path) -> Command;

pub(crate) struct Server {
    pub(crate) port: u16,
    child: Child,
    dir: tempfile::TempDir,
    command: Box<Start>,
}

/// Attempts, one each 50 ms, to see a server answer.
const PATIENCE: usize = 1200;

/// The program of this name, `None` if it is not installed and need not be.
pub(crate) fn program(name: &str, variable: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = given.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(name)));
    let found = places.find(|place| place.is_file());
    if found.is_none() {
        let required = std::env::var("AMEM_REQUIRE_SERVERS").is_ok_and(|value| value == "1");
        assert!(!required, "{name} is required: install it, or name it in {variable}");
        println!("skipped: {name} is not installed; install it, or name it in {variable}");
    }
    found
}

impl Server {
    /// Starts what `command` says, which is given a port and a directory, and waits until it listens.
    fn start(command: impl Fn(u16, &Path) -> Command + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Stands in until the server runs.
        let child = Command::new("true").spawn().unwrap();
        let mut server = Self { port: 0, child, dir, command: Box::new(command) };
        // Somebody else may take the port before the server does.
        let started = (0..5).any(|_| {
            server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            server.listens()
        });
        assert!(started, "a server did not start");
        server
    }

    /// Starts the server again, on the same port and with nothing that it held.
    pub(crate) fn restart(&mut self) {
        assert!(self.listens(), "a server did not start again");
    }

    /// Starts the server. False if it ends instead of listening.
    fn listens(&mut self) -> bool {
        self.kill();
        let mut command = (self.command)(self.port, self.dir.path());
        self.child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for _ in 0..PATIENCE {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Ends the server at once, as a machine that fails does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends the server a signal: `STOP` and it hangs, `CONT` and it goes on.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A Redis server with this password, if one is wanted.
pub(crate) fn redis(password: Option<&str>) -> Option<Server> {
    let (program, password) = (program("redis-server", "AMEM_REDIS_SERVER")?, password.map(str::to_owned));
    Some(Server::start(move |port, dir| {
        let mut command = Command::new(&program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(dir);
        password.iter().for_each(|password| _ = command.args(["--requirepass", password]));
        command
    }))
}

/// What a Redis server says to a command of plain words.
pub(crate) fn ask_redis(server: &Server, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// An S3 server with an empty bucket named `agents-kv`.
pub(crate) fn s3() -> Option<Server> {
    let program = program("moto_server", "AMEM_MOTO_SERVER")?;
    let server = Server::start(move |port, dir| {
        let mut command = Command::new(&program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).current_dir(dir);
        command
    });
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let host = format!("Host: 127.0.0.1:{}", server.port);
    write!(stream, "PUT /agents-kv HTTP/1.1\r\n{host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "no bucket could be made: {answer}");
    Some(server)
}
