//! A PostgreSQL server that ends with the tests.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) struct Server {
    programs: PathBuf,
    dir: PathBuf,
    pub(crate) port: u16,
    /// It stops the server and deletes its files when its input ends, however this process ends.
    _guard: Child,
}

/// Who may log in with a password only, and with which.
pub(crate) const USER_WITH_PASSWORD: (&str, &str) = ("guarded", "sesame/open@now");

/// The server that the tests share; `None` if none is installed, which is told.
pub(crate) fn shared() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(|| start("-c fsync=off -c full_page_writes=off")).as_ref()
}

/// A new server, with further options.
pub(crate) fn start(options: &str) -> Option<Server> {
    let Some(programs) = programs() else {
        let required = std::env::var("AMEM_REQUIRE_SERVERS").is_ok_and(|required| required == "1");
        assert!(!required, "PostgreSQL is not installed, and AMEM_REQUIRE_SERVERS wants it to be");
        println!("skipped: PostgreSQL is not installed");
        return None;
    };
    let dir = tempfile::Builder::new().prefix("amem-postgres-").tempdir().unwrap().keep();
    if is_root() {
        run(Command::new("chown").arg("postgres:").arg(&dir));
    }
    let guard = "read _; \"$1/pg_ctl\" -D \"$2/data\" -m immediate stop; rm -rf \"$2\"";
    let mut shell = as_user("sh");
    shell.args(["-c", guard, "guard"]).arg(&programs).arg(&dir).stdin(Stdio::piped());
    let guard = shell.silent().spawn().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server { programs, dir, port, _guard: guard };
    let data = server.dir.join("data");
    let initdb = ["--no-sync", "--auth=trust", "--username=postgres", "--locale=C", "--encoding=UTF8"];
    run(server.program("initdb").args(initdb).arg("-D").arg(&data));
    let configuration = format!(
        "port = {port}\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nmax_connections = 300\nssl = on\n",
        server.dir.display()
    );
    server.write("data/postgresql.auto.conf", &configuration);
    let hba = "local all all trust\nhost all guarded 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    server.write("data/pg_hba.conf", hba);
    let certificate = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let about = ["-subj", "/CN=amem test", "-addext", "subjectAltName=IP:127.0.0.1"];
    let is_no_authority = ["-addext", "basicConstraints=critical,CA:FALSE"];
    let files = ["-out", "server.crt", "-keyout", "server.key"];
    let certificate = [&certificate[..], &about, &is_no_authority, &files].concat();
    run(as_user("openssl").args(certificate).current_dir(&data).silent());
    server.start_again(options);
    let (name, password) = USER_WITH_PASSWORD;
    let make = format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'; GRANT CREATE ON DATABASE postgres TO {name}");
    server.sql(&make);
    Some(server)
}

impl Server {
    /// Starts it if it does not run. It may take some tries, for one that was killed has to end first.
    pub(crate) fn start_again(&self, options: &str) {
        for _ in 0..100 {
            let mut start = self.program("pg_ctl");
            start.arg("-D").arg(self.dir.join("data")).arg("-l").arg(self.dir.join("log")).args(["-w", "-o", options]);
            if start.arg("start").silent().status().unwrap().success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the server does not start: {}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
    }

    /// Ends it at once with all its processes, as a crash of the machine would.
    pub(crate) fn kill(&self) {
        let postmaster = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap();
        let others = self.sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()");
        let all = postmaster.lines().take(1).chain(others.lines());
        // The first one first, so that it does not replace the others.
        run(Command::new("kill").arg("-9").args(all));
    }

    /// The server by its socket.
    pub(crate) fn address(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.dir.display(), self.port)
    }

    /// A schema that nothing uses yet.
    pub(crate) fn new_schema(&self) -> String {
        static SCHEMAS: AtomicUsize = AtomicUsize::new(0);
        format!("ledger_{}", SCHEMAS.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs statements, and returns what they say.
    pub(crate) fn sql(&self, statements: &str) -> String {
        let done = self.psql(statements).output().unwrap();
        assert!(done.status.success(), "{statements}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn psql(&self, statements: &str) -> Command {
        let mut psql = self.program("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements, &self.address()]);
        psql
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.join("data/server.crt")
    }

    /// Where the tables are.
    pub(crate) fn tables(&self) -> PathBuf {
        let database = self.sql("SELECT oid FROM pg_database WHERE datname = current_database()");
        self.dir.join("data/base").join(database)
    }

    fn program(&self, name: &str) -> Command {
        let mut program = as_user(self.programs.join(name).to_str().unwrap());
        program.current_dir(&self.dir);
        program
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        let owner = fs::metadata(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

trait Silent {
    fn silent(&mut self) -> &mut Self;
}

impl Silent for Command {
    fn silent(&mut self) -> &mut Self {
        self.stdout(Stdio::null()).stderr(Stdio::null())
    }
}

/// The latest version that is installed where Debian puts it, or else the one that a shell finds.
fn programs() -> Option<PathBuf> {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let latest = installed.map(|entry| entry.path()).max_by_key(version).map(|path| path.join("bin"));
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let all = latest.into_iter().chain(std::env::split_paths(&searched));
    all.into_iter().find(|dir| dir.join("initdb").exists())
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().unwrap().uid() == 0
}

/// A program as a user that PostgreSQL's server runs as: it refuses to run as root.
fn as_user(program: &str) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--", program]);
    command
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
