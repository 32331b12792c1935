//! The runbook, walked: every command of its blocks, in their order, against `cutover sandbox` in a
//! process of its own, with a `cutover shim` in another one while the soak and the reverse windows
//! pass. Time is moved as an operator of the sandbox moves it: its clock by `/_sandbox/advance`, ours
//! by `CUTOVER_NOW`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use cutover::domain::time::{HOUR_MS, MINUTE_MS, SECOND_MS, Timestamp};
use serde_json::{Value, json};

const INVENTORY: &str = "tenant,integration_key,providers,account\nkahuna,google,\"ga4,gsc\",default\n\
                         acme,google,gmail,prod\nbolt,google,google_calendar,prod\n";

/// Criteria that one day with a look every hour can meet.
const POLICY: &str = "reverse_window = \"6h\"\n\n[criteria]\nsoak_days = 1\ndelivery_samples_min = 5\n\
                      lag_samples_min = 5\nsmoke_samples_min = 4\nparity_clean_runs = 1\nevidence_gap_max = \"2h\"\n";

/// Ends with its value, however the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A served sandbox, and a folder to work in.
struct Walk {
    _sandbox: Process,
    variables: Vec<(String, String)>,
    gateway: String,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    admin_key: String,
    /// Shims that were started and ended.
    shims: u32,
}

impl Walk {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("inventory.csv"), INVENTORY).unwrap();
        std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut child = bare(dir.path())
            .args(["sandbox", "--print-env", "--inventory", "inventory.csv"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let sandbox = Process(child);
        let mut variables: Vec<(String, String)> = Vec::new();
        // This one comes last.
        while !variables.iter().any(|(name, _)| name == "CUTOVER_PROVIDER_URL") {
            let line = lines.next().expect("the sandbox prints its settings").unwrap();
            let (name, value) = line.strip_prefix("export ").unwrap().split_once('=').unwrap();
            variables.push((name.to_owned(), value.trim_matches('\'').to_owned()));
        }
        let gateway = variables.iter().find(|(name, _)| name == "CUTOVER_GATEWAY_URL").unwrap().1.clone();
        let key = bare(dir.path()).args(["shim", "--new-admin-key"]).output().unwrap();
        let key = String::from_utf8(key.stdout).unwrap();
        let word = |name: &str| key.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        variables.push(("CUTOVER_SHIM_ADMIN_KEYS".to_owned(), word("hash")));
        Self {
            _sandbox: sandbox,
            variables,
            gateway,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            http: reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap(),
            admin_key: word("key"),
            shims: 0,
            dir,
        }
    }

    fn get(&self, url: &str) -> Option<Value> {
        self.runtime.block_on(async {
            let answer = self.http.get(url).header("x-admin-key", &self.admin_key).send().await.ok()?;
            answer.json().await.ok()
        })
    }

    fn ledger(&self) -> Value {
        self.get(&format!("{}/_sandbox/ledger", self.gateway)).expect("the sandbox serves")
    }

    /// The world's time.
    fn now(&self) -> Timestamp {
        time(&self.ledger()["now"])
    }

    /// Moves the world's clock.
    fn advance_to(&self, to: Timestamp) {
        let ms = to.since(self.now()).max(0);
        self.runtime.block_on(async {
            let url = format!("{}/_sandbox/advance", self.gateway);
            let answer = self.http.post(url).json(&json!({"ms": ms})).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200);
        });
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = bare(self.dir.path());
        command.args(args).env("CUTOVER_NOW", self.now().to_rfc3339()).envs(self.variables.iter().cloned());
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(args).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    fn done(&self, args: &[&str]) -> String {
        let (code, out, error) = self.run(args);
        assert_eq!(code, 0, "{args:?}\n{out}\n{error}");
        out
    }

    /// Runs an operation, and again whenever it said. The shim goes on while it waits for long.
    fn until_done(&mut self, args: &[&str]) {
        let args = [args, &["--no-wait", "--format", "json"]].concat();
        for _ in 0..500 {
            let (code, out, error) = self.run(&args);
            let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {code}\n{out}{error}"));
            assert!(code == 0 || code == 4, "{args:?}: {report:#}\n{error}");
            if code == 0 {
                return;
            }
            let next = time(&report["next_at"]);
            while next.since(self.now()) > 30 * MINUTE_MS {
                self.advance_to(next.min(self.now().plus_ms(55 * MINUTE_MS)));
                self.shim_once(&["shim", "--policy", "policy.toml"], None);
            }
            self.advance_to(next);
        }
        panic!("{args:?} does not end");
    }

    /// `cutover shim`, for `hours` of the world. It reads the clock when it starts, so it is started
    /// anew whenever the world's clock has been moved to what is due next.
    fn shim(&mut self, args: &[&str], hours: i64) {
        let end = self.now().plus_ms(hours * HOUR_MS);
        let mut arrived = None;
        loop {
            let header = self.shim_once(args, arrived);
            let now = self.now();
            if now >= end {
                return;
            }
            let poll = header["poll_at"].as_str().map_or(end, |at| Timestamp::parse(at).unwrap());
            let latest = end.min(now.plus_ms(55 * MINUTE_MS));
            arrived = (poll <= latest).then(|| rotations(&header));
            self.advance_to(poll.min(latest).max(now.plus_ms(SECOND_MS)));
        }
    }

    /// Starts a shim, waits until it has caught up, and ends it. What its status says. `arrived`: the
    /// rotations before a read that is due now; one more is waited for.
    fn shim_once(&mut self, args: &[&str], arrived: Option<i64>) -> Value {
        self.shims += 1;
        let args = [args, &["--listen", "127.0.0.1:0"]].concat();
        let mut shim = Process(self.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let mut said = BufReader::new(shim.0.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on ") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "the shim ended: {:?}", shim.0.wait());
        }
        let address = line.trim().split("listening on ").nth(1).unwrap().to_owned();
        let url = format!("{address}/admin/status");
        let caught_up = || {
            let status = self.get(&url)?;
            let pending = status["sinks"].as_array()?.iter().any(|sink| sink["pending"] != 0);
            // What it reads after this look would wait for the next shim.
            let soon = self.now().plus_ms(3 * SECOND_MS);
            let due = status["header"]["poll_at"].as_str().is_some_and(|at| Timestamp::parse(at).unwrap() <= soon);
            let read = arrived.is_none_or(|before| rotations(&status["header"]) > before);
            (!pending && !due && read).then(|| status["header"].clone())
        };
        let header = (0..600).find_map(|_| {
            caught_up().or_else(|| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                None
            })
        });
        let header = header.unwrap_or_else(|| panic!("the shim does not catch up: {:#}", self.ledger()));
        let killed = Command::new("kill").arg(shim.0.id().to_string()).status().unwrap();
        assert!(killed.success());
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(shim.0.wait().unwrap().code(), Some(0), "{rest}");
        header
    }

    fn plan(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("plan.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn stages(&self) -> Vec<String> {
        let status: Value = serde_json::from_str(&self.done(&["status", "--format", "json"])).unwrap();
        let rows = status["rows"].as_array().unwrap();
        rows.iter().map(|row| row["stage"].as_str().unwrap().to_owned()).collect()
    }
}

fn bare(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("USER", "alice")
        .current_dir(folder)
        .stdin(Stdio::null());
    command
}

fn rotations(header: &Value) -> i64 {
    header["counters"]["rotations_arrived"].as_i64().unwrap_or(0)
}

fn time(value: &Value) -> Timestamp {
    Timestamp::parse(value.as_str().unwrap_or_else(|| panic!("{value} is no time"))).unwrap()
}

/// A checkout of a gateway.
fn checkout(folder: &Path) {
    std::fs::create_dir_all(folder.join("src")).unwrap();
    std::fs::write(
        folder.join("wrangler.toml"),
        "name = \"gateway\"\n\n[[durable_objects.bindings]]\nname = \"TOKEN_MANAGER\"\nclass_name = \"TokenManager\"\n\n\
         [exports.TokenManager]\ntype = \"durable-object\"\nstorage = \"sqlite\"\n",
    )
    .unwrap();
    std::fs::write(
        folder.join("src/index.ts"),
        "export class TokenManager {\n  async alarm() {\n    await this.refresh();\n  }\n}\n",
    )
    .unwrap();
}

/// The commands of the runbook's walk, in its order.
fn runbook() -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbook.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```console walk";
        } else if inside && let Some(command) = line.strip_prefix("cutover ") {
            let command = command.split(" #").next().unwrap();
            commands.push(command.split_whitespace().map(str::to_owned).collect());
        }
    }
    commands
}

#[test]
fn the_runbook_walks_a_whole_cutover_of_a_served_sandbox() {
    let mut walk = Walk::start();
    checkout(&walk.dir.path().join("gateway"));
    let commands = runbook();
    assert!(commands.len() > 20, "{commands:?}");
    let mut soaked = false;
    for command in commands {
        let id = walk.plan().map(|plan| plan["id"].as_str().unwrap().to_owned()).unwrap_or_default();
        let args: Vec<String> =
            command.into_iter().map(|arg| if arg == "p-0123456789ab" { id.clone() } else { arg }).collect();
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        let dry = args.contains(&"--dry-run");
        match (args[0], args.get(1).copied().unwrap_or_default()) {
            // First the soak, then the reverse windows.
            ("shim", _) => {
                walk.shim(&args, if soaked { 7 } else { 27 });
                soaked = true;
            }
            ("apply" | "switch" | "reverse", _) | ("consent", "all") | ("retire", "do-alarm" | "nango") if !dry => {
                args.push("--yes");
                walk.until_done(&args);
            }
            ("settle", _) if !dry => walk.until_done(&args),
            _ => {
                walk.done(&args);
            }
        }
    }
    assert!(walk.stages().iter().all(|stage| stage == "retired"), "{:?}", walk.stages());
    assert!(walk.shims > 30, "the shim was started {} times", walk.shims);
    let draft = std::fs::read_to_string(walk.dir.path().join("retire/adr-draft.md")).unwrap();
    assert!(draft.contains("was disarmed and read back at"), "{draft}");
    let second = std::fs::read_to_string(walk.dir.path().join("retire/deploy-2.diff")).unwrap();
    assert!(second.contains("+state = \"deleted\"") && second.contains("-export class TokenManager"), "{second}");
    let ledger = walk.ledger()["ledger"].clone();
    for damage in ["lost", "stale_reads", "regressions", "double_refreshes", "foreign_writes"] {
        assert_eq!(ledger[damage], 0, "{damage}: {ledger:#}");
    }
}
