//! Servers to ask: in this process, or the command itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs, dead_code, unreachable_pub, unused_imports)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use amem::http::{self, Identity, KeyHeader, Limits};
use amem::server::{Options, Server};
use amem_core::Memory;
use axum::Router;
use tokio::sync::oneshot;

/// A server in this process, on a port that was free. It stops when this is dropped.
pub struct Front {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Front {
    /// A server of these routes.
    pub fn start(router: Router, limits: Limits) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (told, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(
                async {
                    let (listener, address) = http::bind("127.0.0.1", 0).await.unwrap();
                    told.send(address).unwrap();
                    let router = http::layers(router, &limits);
                    http::serve(listener, router, &limits, async { drop(stopped.await) }).await.unwrap();
                },
            );
        });
        Self { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    /// A server of a memory that anybody may use.
    pub fn of(memory: Memory) -> Self {
        Self::with(memory, Identity::new(KeyHeader::Authorization), Options::default())
    }

    /// A server of a memory.
    pub fn with(memory: Memory, identity: Identity, options: Options) -> Self {
        Self::start(Server::new(memory, identity, options).router(), Limits::default())
    }

    /// Where a path is.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        let stopped = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(stopped.is_none_or(|stopped| stopped.is_ok()) || std::thread::panicking(), "the server panicked");
    }
}

/// The command as a server, in a process of its own. It is killed when this is dropped.
pub struct Process {
    pub child: Child,
    pub url: String,
}

impl Process {
    /// Starts `amem` with these arguments, with its data in this directory, and waits until it listens.
    pub fn start(arguments: &[&str], data: &Path) -> Self {
        Self::spawn(Self::command(arguments, data))
    }

    /// The command that starts it.
    pub fn command(arguments: &[&str], data: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amem"));
        command.args(arguments).args(["--port", "0", "--data-dir"]).arg(data);
        command
    }

    /// Runs a command that starts it, and waits until it listens.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        assert!(url.starts_with("http://"), "the server said {line:?}");
        Self { child, url }
    }

    /// Where a path is.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
