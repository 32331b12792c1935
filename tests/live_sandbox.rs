//! `cutover sandbox` as a user runs it: beside a client, in real time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use cutover::domain::secret::{hex, hmac_sha256};

/// Ends the sandbox also when a test fails.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cutover(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command.env_clear().env("USER", "alice").current_dir(folder).stdin(Stdio::null());
    command
}

/// A served sandbox and the variables that it printed.
struct Live {
    sandbox: Serving,
    stdout: BufReader<ChildStdout>,
    environment: Vec<(String, String)>,
    dir: tempfile::TempDir,
}

impl Live {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sandbox =
            cutover(dir.path()).args(["sandbox", "--print-env"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut sandbox = Serving(sandbox.unwrap());
        let mut stdout = BufReader::new(sandbox.0.stdout.take().unwrap());
        let mut environment = Vec::new();
        // This one comes last.
        while !environment.iter().any(|(name, _): &(String, String)| name == "CUTOVER_PROVIDER_URL") {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            let (name, value) = line.trim_end().strip_prefix("export ").unwrap().split_once('=').unwrap();
            environment.push((name.to_owned(), value.trim_matches('\'').to_owned()));
        }
        Self { sandbox, stdout, environment, dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = cutover(self.dir.path());
        command.args(args).envs(self.environment.iter().cloned());
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text, String::from_utf8(output.stderr).unwrap())
    }

    fn variable(&self, name: &str) -> &str {
        &self.environment.iter().find(|(n, _)| n == name).unwrap().1
    }
}

#[test]
fn the_printed_environment_points_a_client_at_the_sandbox() {
    let mut live = Live::start();
    let (code, shown, _) = live.run(&["config"]);
    // The two variables of an OAuth app are one line.
    let lines = live.environment.iter().filter(|(name, _)| !name.ends_with("_CLIENT_SECRET")).count();
    assert_eq!((code, shown.matches("environment").count()), (0, lines), "{shown}");
    assert_eq!(live.run(&["plan", "--inventory", "nango", "--out", "plan.json"]).0, 0);
    let (code, out, error) = live.run(&["apply", "plan.json", "--inventory", "nango", "--yes"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("composio    holds the current token of 24 of 24 triplets"), "{out}");

    live.sandbox.0.kill().unwrap();
    let mut rest = String::new();
    live.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "stdout holds the environment and nothing else");
    let mut told = String::new();
    live.sandbox.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.starts_with("nango       http://127.0.0.1:") && told.contains("/_sandbox/ledger"), "{told}");
}

/// Sends one request and gives the status line.
fn post(address: &str, signature: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST /admin/sync/nango HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\
         x-nango-hmac-sha256: {signature}\r\n\r\n{body}"
    )
    .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

/// No thread of the process has a capability or can get one, and its memory goes nowhere.
#[cfg(target_os = "linux")]
fn assert_unprivileged(process: u32) {
    let read = |path: String| std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let threads: Vec<_> = std::fs::read_dir(format!("/proc/{process}/task")).unwrap().map(Result::unwrap).collect();
    assert!(threads.len() > 1, "its duties run in threads of their own");
    let root = read("/proc/self/status".to_owned()).lines().any(|line| line.starts_with("Uid:\t0\t"));
    for thread in threads {
        let status = read(format!("{}/status", thread.path().display()));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name}: {status}")).trim().to_owned()
        };
        assert_eq!(field("NoNewPrivs"), "1");
        let sets: &[&str] =
            if root { &["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] } else { &["CapPrm", "CapEff"] };
        for set in sets {
            assert_eq!(field(set), "0000000000000000", "{set}: {status}");
        }
    }
    let limits = read(format!("/proc/{process}/limits"));
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}

#[cfg(not(target_os = "linux"))]
fn assert_unprivileged(_: u32) {}

#[test]
fn the_shim_takes_signed_webhooks_alone_on_its_state_and_stops_when_told() {
    let live = Live::start();
    let (code, _, error) = live.run(&["shim"]);
    assert!(code == 7 && error.contains("no plan is applied"), "{code}: {error}");
    assert_eq!(live.run(&["plan", "--inventory", "nango", "--out", "plan.json"]).0, 0);
    assert_eq!(live.run(&["apply", "plan.json", "--yes"]).0, 0);

    let shim = live.command(&["shim", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped()).spawn();
    let mut shim = Serving(shim.unwrap());
    let mut stderr = BufReader::new(shim.0.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}")).to_owned();

    assert_unprivileged(shim.0.id());
    let body = r#"{"type":"auth","operation":"override","success":true,"connectionId":"kahuna__slack__default","providerConfigKey":"slack"}"#;
    let key = live.variable("CUTOVER_NANGO_WEBHOOK_KEY");
    let signature = hex(&hmac_sha256(key.as_bytes(), &[body.as_bytes()]));
    assert!(post(&address, &signature, body).contains(" 200 "));
    assert!(post(&address, &signature, &body.replace("slack", "gong")).contains(" 401 "));
    assert!(post(&address, "", body).contains(" 401 "));

    let (code, _, error) = live.run(&["shim", "--listen", "127.0.0.1:0"]);
    assert!(code == 7 && error.contains("another process works on the state"), "{code}: {error}");

    let killed = Command::new("kill").arg(shim.0.id().to_string()).status().unwrap();
    assert!(killed.success());
    assert_eq!(shim.0.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("stopped between two rounds"), "{rest}");
}

#[test]
fn what_the_sandbox_cannot_do_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (&["--faults", "crash=2"][..], "runs none"),
        (&["--faults", "crush"], "did you mean"),
        (&["--speed=-1"], "stands still"),
        (&["--speed=NaN"], "stands still"),
        (&["--shim-url", "127.0.0.1:80"], "http or https address"),
        (&["--inventory", "no/such.csv"], "no/such.csv"),
    ] {
        let output = cutover(dir.path()).arg("sandbox").args(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains(expected), "{args:?}: {error}");
    }
}
