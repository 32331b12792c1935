//! `cutover soak`: the live dashboard. A thread of its own asks for pictures; this one has the
//! terminal, draws, and reads keys.

use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::size;
use reqwest::header::HeaderValue;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::apply::{StateArgs, explain};
use super::config::Config;
use super::plan::{Inputs, wall_clock};
use super::{CommandError, CommandResult, OutputFormat, Ui};
use crate::domain::duration::Millis;
use crate::domain::secret::Secret;
use crate::domain::time::{HOUR_MS, SECOND_MS, parse_duration_ms};
use crate::exit;
use crate::plan::Policy;
use crate::soak::picture::Picture;
use crate::soak::{Asked, Dashboard, Key, Lines, Theme, draw, look, still};
use crate::status::snapshot;
use crate::store::Store;

/// The longest wait for a key before the mailbox is looked into again.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// How long the screen gets to be put in order when the process is asked to end.
const LEAVE: Duration = Duration::from_secs(1);

/// How long a shim may take to answer.
const SHIM_TIME: Duration = Duration::from_secs(10);

/// The largest picture that is taken from a shim, bytes: 10,000 triplets take about 6 MB.
const PICTURE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A still where no terminal tells a size.
const STILL: (u16, u16) = (120, 48);

/// Watch the soak, live in the terminal
///
/// Shows what the gate would say and why, every triplet, the sinks, the request budgets, dead letters and
/// what happened last. Only reads. Follows the state, or a running shim with `--shim`, which also knows its
/// circuit breakers and budgets. `?` shows the keys. Where stdout is no terminal it prints a line each
/// interval and what changed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cutover soak
  cutover soak --state postgres://cutover@db/cutover --every 10s
  CUTOVER_SHIM_ADMIN_KEY=… cutover soak --shim http://127.0.0.1:8787
  cutover soak --once
  cutover soak --once --format json | jq '.criteria[] | select(.judged.verdict != \"pass\")'")]
pub struct SoakArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Follow a running shim instead of a state; its admin key is `CUTOVER_SHIM_ADMIN_KEY`
    #[arg(long, value_name = "URL", conflicts_with = "place")]
    shim: Option<reqwest::Url>,
    /// Policy that the plan was made with
    #[arg(long, value_name = "FILE", conflicts_with = "shim")]
    policy: Option<std::path::PathBuf>,
    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    every: Millis,
    /// Print one still and end
    #[arg(long)]
    once: bool,
    /// Shape of the still
    #[arg(long, value_enum, default_value_t, requires = "once")]
    format: OutputFormat,
}

fn interval(text: &str) -> Result<Millis, String> {
    let ms = parse_duration_ms(text).ok().filter(|ms| (SECOND_MS / 2..=HOUR_MS).contains(ms));
    ms.map(Millis).ok_or_else(|| "a time from 500ms to 1h is wanted".to_owned())
}

/// Where pictures come from.
enum Origin {
    /// `ahead_ms`: what `CUTOVER_NOW` is ahead of the clock.
    State {
        store: Box<Store>,
        policy: Box<Policy>,
        ahead_ms: i64,
    },
    Shim {
        client: reqwest::Client,
        url: reqwest::Url,
        key: Secret,
    },
}

/// What the asking thread reports.
enum Mail {
    Picture(Box<Picture>),
    Trouble(String),
    /// Somebody asked the process to end.
    Stop,
}

/// # Errors
/// Exit code 2 for bad input, 7 when no plan is applied, 1 when the first look fails.
pub fn run(args: SoakArgs, ui: &Ui) -> CommandResult {
    let runtime = super::runtime()?;
    let (name, origin) = runtime.block_on(origin(&args, ui))?;
    let picture = runtime.block_on(origin.fetch())?;
    if args.once {
        let text = match args.format {
            OutputFormat::Json => {
                let mut value = serde_json::to_value(&picture).expect("our own types serialise");
                value["verdict"] = json!(picture.verdict());
                (value["exit_code"], value["reason"]) = (json!(exit::OK), json!("one look"));
                format!("{value:#}\n")
            }
            OutputFormat::Text => {
                let (width, height) = size().unwrap_or(STILL);
                still(&mut Dashboard::new(name, picture), width, height)
            }
        };
        ui.print(&text);
        return Ok(exit::OK);
    }
    let (asks, orders) = channel();
    let (post, mail) = channel();
    let every = Duration::from_millis(args.every.0.unsigned_abs());
    let asking = std::thread::spawn(move || runtime.block_on(ask(&origin, every, &orders, &post)));
    let ended = if std::io::stdout().is_terminal() {
        let theme = Theme { color: ui.color_stdout };
        let terminal = ratatui::try_init()
            .map_err(|error| CommandError::failed("cannot take over the terminal").because(&error))?;
        let ended = show(terminal, Dashboard::new(name, picture), theme, &asks, &mail);
        ratatui::restore();
        ended.map_err(|error| CommandError::failed("the terminal failed").because(&error))
    } else {
        print_lines(&picture, &mail, ui);
        Ok(())
    };
    drop((asks, mail));
    // It ends by itself when nobody listens; a panic in it was already reported.
    let _ = asking.join();
    ended.map(|()| exit::OK)
}

async fn origin(args: &SoakArgs, ui: &Ui) -> Result<(String, Origin), CommandError> {
    if let Some(url) = &args.shim {
        let key = Config::load(ui.config.as_deref())?.shim_admin_key()?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(SHIM_TIME).build();
        let client = client.map_err(|error| CommandError::failed("cannot make an HTTP client").because(&error))?;
        let url = url
            .join("/admin/soak")
            .map_err(|error| CommandError::usage(format!("`{url}` is not the address of a shim")).because(&error))?;
        return Ok((url.origin().ascii_serialization(), Origin::Shim { client, url, key }));
    }
    let not_applied = || {
        CommandError::new(exit::REFUSED, "no plan is applied in this state")
            .hint("run `cutover apply PLAN` first, or name its state as `--state`")
    };
    if !args.state.exists() {
        return Err(not_applied());
    }
    let inputs = Inputs { policy: args.policy.clone(), ..Inputs::default() };
    let (policy, ahead_ms) = (inputs.load_policy()?, inputs.now()?.since(wall_clock()));
    let store = args.state.open_beside().await?;
    if store.load_plan_id().await.map_err(|error| explain(error.into()))?.is_none() {
        return Err(not_applied());
    }
    Ok((args.state.place().to_string(), Origin::State { store: Box::new(store), policy: Box::new(policy), ahead_ms }))
}

impl Origin {
    async fn fetch(&self) -> Result<Picture, CommandError> {
        match self {
            Self::State { store, policy, ahead_ms } => {
                let now = wall_clock().plus_ms(*ahead_ms);
                let snapshot = snapshot(store, policy, now).await.map_err(|error| explain(error.into()))?;
                look(store, policy, &snapshot, now).await.map_err(explain)
            }
            Self::Shim { client, url, key } => fetch_from_shim(client, url, key).await,
        }
    }
}

async fn fetch_from_shim(client: &reqwest::Client, url: &reqwest::Url, key: &Secret) -> Result<Picture, CommandError> {
    let failed = |what: &str| CommandError::failed(format!("the shim at `{url}` {what}"));
    let mut key = HeaderValue::from_str(key.expose())
        .map_err(|_| CommandError::usage("`CUTOVER_SHIM_ADMIN_KEY` cannot be sent as a header"))?;
    key.set_sensitive(true);
    let sent = client.get(url.clone()).header("x-admin-key", key).send().await;
    let mut response = sent.map_err(|error| failed("did not answer").because(&error.without_url()))?;
    if !response.status().is_success() {
        let hint = if response.status() == 401 { "is `CUTOVER_SHIM_ADMIN_KEY` its admin key?" } else { "see its log" };
        return Err(failed(&format!("answered {}", response.status())).hint(hint));
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| failed("stopped answering").because(&error.without_url()))?
    {
        if body.len() + chunk.len() > PICTURE_BYTES_MAX {
            return Err(failed("sent more than a picture can be"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|error| failed("sent what is not a picture").because(&error))
}

/// Fetches until nobody listens any more, or a signal asks to end.
async fn ask(origin: &Origin, every: Duration, orders: &Receiver<()>, post: &Sender<Mail>) {
    let (Ok(mut terminate), Ok(mut hangup)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup())) else {
        return;
    };
    loop {
        let began = Instant::now();
        while began.elapsed() < every {
            match orders.try_recv() {
                Ok(()) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                Err(std::sync::mpsc::TryRecvError::Empty) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(KEY_WAIT) => {}
                _ = terminate.recv() => return leave(orders, post).await,
                _ = hangup.recv() => return leave(orders, post).await,
            }
        }
        let mail = match origin.fetch().await {
            Ok(picture) => Mail::Picture(Box::new(picture)),
            Err(error) => Mail::Trouble(error.to_string()),
        };
        if post.send(mail).is_err() {
            return;
        }
    }
}

/// Asked to end. The thread that reads keys may never come back: where the terminal is gone, the
/// key reader (crossterm 0.29) meets its end again and again. Then the process ends without it.
async fn leave(orders: &Receiver<()>, post: &Sender<Mail>) {
    if post.send(Mail::Stop).is_err() {
        return;
    }
    let asked = Instant::now();
    while asked.elapsed() < LEAVE {
        if matches!(orders.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
            return;
        }
        tokio::time::sleep(KEY_WAIT).await;
    }
    ratatui::restore();
    std::process::exit(exit::OK.into());
}

/// Draws and reads keys until somebody ends it.
fn show(
    mut terminal: DefaultTerminal,
    mut dashboard: Dashboard,
    theme: Theme,
    asks: &Sender<()>,
    mail: &Receiver<Mail>,
) -> std::io::Result<()> {
    let mut dirty = true;
    loop {
        if dirty {
            terminal.draw(|frame| draw(frame, &mut dashboard, theme))?;
        }
        dirty = false;
        if event::poll(KEY_WAIT)? {
            dirty = true;
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
                        return Ok(());
                    }
                    match translate(key.code).map(|key| dashboard.press(key)) {
                        Some(Asked::Quit) => return Ok(()),
                        // The asking thread may have ended; then its last trouble is on the screen.
                        Some(Asked::Refresh) => drop(asks.send(())),
                        Some(Asked::Draw) | None => {}
                    }
                }
                _ => {}
            }
        }
        for mail in mail.try_iter() {
            dirty = true;
            match mail {
                Mail::Picture(picture) => dashboard.show(*picture),
                Mail::Trouble(trouble) => dashboard.trouble = Some(trouble),
                Mail::Stop => return Ok(()),
            }
        }
    }
}

fn translate(code: KeyCode) -> Option<Key> {
    Some(match code {
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Char(c) => Key::Char(c),
        _ => return None,
    })
}

/// Prints until a signal comes or the other end of the pipe is gone.
fn print_lines(first: &Picture, mail: &Receiver<Mail>, ui: &Ui) {
    let mut lines = Lines::default();
    if !ui.try_print(&lines.of(first)) {
        return;
    }
    loop {
        match mail.recv_timeout(Duration::from_secs(3600)) {
            Ok(Mail::Picture(picture)) => {
                if !ui.try_print(&lines.of(&picture)) {
                    return;
                }
            }
            Ok(Mail::Trouble(trouble)) => ui.note(&trouble),
            Ok(Mail::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
