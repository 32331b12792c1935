//! A PostgreSQL of our own for one test binary: started when it is first asked for, gone with the
//! process, however that ends.
#![allow(dead_code, reason = "each test binary uses its part of this")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs PostgreSQL until standard input ends, which it does when the test process is gone. The
/// number of the server's process is the first line of the output.
const KEEPER: &str = r#"
"$@" >"$0/log" 2>&1 </dev/null &
server=$!
echo $server
while read -r order; do
  case $order in
    kill) kill -QUIT $server; wait $server; echo dead ;;
    start) "$@" >>"$0/log" 2>&1 </dev/null & server=$!; echo $server ;;
  esac
done
kill -INT $server
wait $server
rm -rf -- "$0"
"#;

pub struct Postgres {
    keeper: Child,
    output: BufReader<std::process::ChildStdout>,
    port: u16,
    folder: PathBuf,
}

/// The one that the tests of a binary share.
pub fn shared() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(Postgres::start)
}

impl Postgres {
    /// Makes a cluster and starts it.
    pub fn start() -> Self {
        let bin = binaries();
        let folder = tempfile::Builder::new().prefix("cutover-pg-").tempdir().unwrap().keep();
        // PostgreSQL refuses to run as root.
        let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        let user: &[&str] = if root { &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] } else { &[] };
        if root {
            std::os::unix::fs::chown(&folder, Some(65534), Some(65534)).unwrap();
        }
        let data = folder.join("data");
        let command = |program: &str| -> Vec<String> {
            let program = bin.join(program).display().to_string();
            user.iter().map(|s| (*s).to_owned()).chain([program]).collect()
        };
        let initdb = command("initdb");
        let made = Command::new(&initdb[0])
            .args(&initdb[1..])
            .args(["-U", "cutover", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&data)
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER])
            .arg(&folder)
            .args(command("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=400"])
            .args(["-c", "shared_buffers=32MB", "-c", "unix_socket_directories="])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(keeper.stdout.take().unwrap());
        let mut postgres = Self { keeper, output, port, folder };
        postgres.answer();
        postgres.wait_until_up();
        postgres
    }

    /// Kills the server as a crash would: without a checkpoint, in the middle of things.
    pub fn kill(&mut self) {
        self.order("kill");
    }

    /// Starts a server that was killed and waits until it has recovered.
    pub fn restart(&mut self) {
        self.order("start");
        self.wait_until_up();
    }

    fn order(&mut self, order: &str) {
        writeln!(self.keeper.stdin.as_mut().unwrap(), "{order}").unwrap();
        self.answer();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn wait_until_up(&self) {
        for _ in 0..600 {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() && self.psql("postgres", "SELECT 1").is_some() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
    }

    fn psql(&self, database: &str, sql: &str) -> Option<String> {
        let output = Command::new(binaries().join("psql"))
            .args(["-qAt", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.url(database)])
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// Runs SQL on the database at `url`. What it printed.
    pub fn run(&self, url: &str, sql: &str) -> String {
        let database = url.rsplit('/').next().unwrap();
        self.psql(database, sql).unwrap_or_else(|| panic!("{sql} fails: see {}", self.folder.join("log").display()))
    }

    /// Makes `to` a copy of the database `from`, whoever is connected to either.
    pub fn copy(&self, from: &str, to: &str) {
        let name = |url: &str| url.rsplit('/').next().unwrap().to_owned();
        let (from, to) = (name(from), name(to));
        let alone = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{from}'");
        for sql in [
            alone,
            format!("DROP DATABASE IF EXISTS {to} WITH (FORCE)"),
            format!("CREATE DATABASE {to} TEMPLATE {from}"),
        ] {
            self.run("/postgres", &sql);
        }
    }

    /// Makes an empty database. Returns its URL.
    pub fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("state_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}")).expect("a database can be made");
        self.url(&name)
    }

    /// Makes an empty database whose texts are ordered as in a language, such as `en-US`. Returns its URL.
    pub fn database_in(&self, language: &str) -> String {
        let name = format!("state_{}", language.replace('-', "_").to_lowercase());
        let sql = format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE '{language}'"
        );
        self.psql("postgres", &sql).expect("a database with ICU's rules can be made");
        self.url(&name)
    }

    /// What a statement gives in the database of `url`, as psql prints it.
    pub fn ask(&self, url: &str, sql: &str) -> String {
        let database = url.rsplit('/').next().expect("a URL ends with its database");
        self.psql(database, sql).expect("a statement of a test")
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://cutover@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// The newest server programs of this machine; installs them when there are none.
fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        find().unwrap_or_else(|| {
            let installed = Command::new("sh")
                .args(["-c", "apt-get install -y --no-install-recommends postgresql >&2"])
                .env("DEBIAN_FRONTEND", "noninteractive")
                .status();
            assert!(
                installed.is_ok_and(|s| s.success()),
                "these tests need PostgreSQL's server programs (`initdb`, `postgres`, `psql`): install them first"
            );
            find().expect("the package brings the server programs")
        })
    })
}

fn find() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists() && bin.join("psql").exists())
        .collect();
    let number = |bin: &PathBuf| bin.parent()?.file_name()?.to_str()?.parse::<f32>().ok();
    versions.sort_by(|a, b| number(a).partial_cmp(&number(b)).unwrap_or(std::cmp::Ordering::Equal));
    let path = std::env::var_os("PATH").unwrap_or_default();
    versions.pop().or_else(|| std::env::split_paths(&path).find(|bin| bin.join("initdb").exists()))
}
