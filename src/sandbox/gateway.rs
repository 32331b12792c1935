//! The gateway ("V5"): its hot path and its TokenManager objects with their alarms, as
//! `docs/gateway.md` describes them.

mod http;

use std::collections::VecDeque;

use crate::domain::time::{MINUTE_MS, SECOND_MS, Timestamp};
use crate::ports::AlarmMode;

use super::draw;
use super::ledger::Sink;
use super::nango::push_bounded;
use super::provider::{Party, TokenRef};
use super::world::{Event, GatewayKind, World};

/// `refresh` fires this long before expiry.
const REFRESH_AHEAD_MS: i64 = 10 * MINUTE_MS;
/// `standby` fires this long before the expiry of the entry in KV.
const STANDBY_AHEAD_MS: i64 = 5 * MINUTE_MS;
/// When a handler that throws runs again, after its first run (cloudflare.md §5.3). After the
/// seventh run the alarm is gone without a word.
const RETRY_AT_MS: [i64; 6] = [2_200, 6_800, 15_600, 32_100, 68_600, 147_500];
/// Fires kept for `GET /admin/fires`.
const FIRES_MAX: usize = 50_000;

/// One TokenManager object.
#[derive(Clone, Debug)]
pub(super) struct TokenManager {
    /// 64 hex digits.
    pub id: String,
    pub triplet: usize,
    pub mode: AlarmMode,
    pub alarm_at: Option<Timestamp>,
    /// Alarms of older generations are void.
    generation: u64,
    pub last_fired_at: Option<Timestamp>,
    pub fires: u64,
    /// Its own copy of the grant's refresh token.
    pub refresh_token: Option<String>,
    /// Runs of the current alarm that threw, and when the first one was.
    failed_runs: usize,
    first_run_at: Timestamp,
    /// Ignores mode changes (a fault).
    pub zombie: bool,
}

/// One run of an alarm handler.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fire {
    pub number: u64,
    pub object: usize,
    pub at: Timestamp,
    pub mode: AlarmMode,
    pub wrote: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Gateway {
    /// One per triplet, in the same order.
    pub objects: Vec<TokenManager>,
    pub fires: VecDeque<Fire>,
    next_fire: u64,
}

impl World {
    /// The object of a triplet, as ADR-038 left it: mode `refresh`, armed, and the token in KV.
    pub(super) fn gateway_create_object(&mut self, triplet: usize, token: TokenRef) {
        let name = self.triplets[triplet].name.clone();
        let grant = self.rows[self.triplets[triplet].row].grant;
        self.kv_seed_token(triplet, token);
        self.gateway.objects.push(TokenManager {
            id: draw::hex(self.seed(), &["object", &name], 0, 64),
            triplet,
            mode: AlarmMode::Refresh,
            alarm_at: None,
            generation: 0,
            last_fired_at: None,
            fires: 0,
            refresh_token: self.providers.refresh_text(grant),
            failed_runs: 0,
            first_run_at: token.minted_at,
            zombie: false,
        });
        // On the Workers runtime the object there has the alarm.
        if self.options().gateway == GatewayKind::Emulated {
            self.arm(triplet, token.expires_at.map(|e| e.plus_ms(-REFRESH_AHEAD_MS)));
        }
    }

    /// Sets or deletes an object's alarm. A time in the past fires at once.
    fn arm(&mut self, object: usize, at: Option<Timestamp>) {
        let at = at.map(|at| at.max(self.now()));
        let manager = &mut self.gateway.objects[object];
        manager.generation += 1;
        manager.failed_runs = 0;
        manager.alarm_at = at;
        let generation = manager.generation;
        if let Some(at) = at {
            self.schedule(at, Event::Alarm { object, generation });
        }
    }

    /// `POST /admin/alarms/{triplet}/mode`.
    pub(super) fn gateway_set_mode(&mut self, object: usize, mode: AlarmMode) {
        if self.gateway.objects[object].zombie {
            return;
        }
        self.gateway.objects[object].mode = mode;
        match mode {
            AlarmMode::Refresh => self.arm_before_kv_expiry(object, REFRESH_AHEAD_MS),
            AlarmMode::Standby => self.arm_before_kv_expiry(object, STANDBY_AHEAD_MS),
            // The alarm that is set may still fire; the handler then only reports.
            AlarmMode::Report => {}
            AlarmMode::Disarmed => self.arm(object, None),
        }
    }

    fn arm_before_kv_expiry(&mut self, object: usize, ahead_ms: i64) {
        let (_, entry) = self.worker_view(object);
        let at = match entry {
            // A token that never expires needs no alarm.
            Some(entry) => entry.expires_at.map(|e| e.plus_ms(-ahead_ms)),
            None => Some(self.now()),
        };
        let never = self.gateway.objects[object].refresh_token.is_none();
        self.arm(object, at.filter(|_| !never));
    }

    /// An alarm's time has come.
    pub(super) fn gateway_alarm(&mut self, object: usize, generation: u64) {
        let now = self.now();
        let manager = &mut self.gateway.objects[object];
        if manager.generation != generation || manager.alarm_at.is_none() {
            return;
        }
        if manager.failed_runs == 0 {
            manager.first_run_at = now;
        }
        manager.fires += 1;
        manager.last_fired_at = Some(now);
        let mode = manager.mode;
        let refreshes = match mode {
            AlarmMode::Refresh => true,
            AlarmMode::Standby => {
                let (_, entry) = self.worker_view(object);
                let fresh_until = entry.and_then(|e| e.expires_at).filter(|e| e.since(now) > STANDBY_AHEAD_MS);
                if let Some(expires_at) = fresh_until {
                    self.arm(object, Some(expires_at.plus_ms(-STANDBY_AHEAD_MS)));
                }
                fresh_until.is_none()
            }
            AlarmMode::Report | AlarmMode::Disarmed => {
                self.arm(object, None);
                false
            }
        };
        let wrote = refreshes && self.gateway_refresh(object, mode);
        self.gateway.next_fire += 1;
        let fire = Fire { number: self.gateway.next_fire, object, at: now, mode, wrote };
        push_bounded(&mut self.gateway.fires, fire, FIRES_MAX);
    }

    /// Refreshes at the provider and puts to KV. A refusal or a lost KV write throws, and the
    /// runtime runs the handler again on its own schedule.
    fn gateway_refresh(&mut self, object: usize, mode: AlarmMode) -> bool {
        let Some(refresh_token) = self.gateway.objects[object].refresh_token.clone() else {
            self.arm(object, None);
            return false;
        };
        if let Ok(answer) = self.refresh_grant(&refresh_token, Party::DoAlarm) {
            if let Some(next) = answer.refresh_token.clone() {
                self.gateway.objects[object].refresh_token = Some(next);
            }
            let triplet = self.gateway.objects[object].triplet;
            if self.kv_put_token_from_worker(triplet, answer.token, Sink::KvSource, "a TokenManager object") {
                let ahead = if mode == AlarmMode::Standby { STANDBY_AHEAD_MS } else { REFRESH_AHEAD_MS };
                let now = self.now();
                // A life shorter than the lead would fire for ever at this very instant.
                let at = answer.token.expires_at.map(|e| e.plus_ms(-ahead).max(now.plus_ms(SECOND_MS)));
                self.arm(object, at);
                return true;
            }
        }
        let manager = &mut self.gateway.objects[object];
        match RETRY_AT_MS.get(manager.failed_runs) {
            Some(offset) => {
                manager.failed_runs += 1;
                manager.generation += 1;
                let (generation, at) = (manager.generation, manager.first_run_at.plus_ms(*offset));
                self.schedule(at, Event::Alarm { object, generation });
            }
            None => self.arm(object, None),
        }
        false
    }

    /// The fault: the object forgets what it was told and never listens again.
    pub(super) fn gateway_zombie(&mut self, object: usize) {
        let manager = &mut self.gateway.objects[object];
        manager.mode = AlarmMode::Refresh;
        manager.zombie = true;
        self.arm_before_kv_expiry(object, REFRESH_AHEAD_MS);
    }
}
