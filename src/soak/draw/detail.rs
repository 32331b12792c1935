//! Everything about one triplet.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::theme::Theme;
use super::triplets::mirrored;
use super::{broken_line, fit, panel};
use crate::domain::time::Timestamp;
use crate::soak::dashboard::Dashboard;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, d: &Dashboard, theme: Theme) {
    let Some(t) = d.shown.get(d.selected).map(|&i| &d.picture.triplets[i]) else { return };
    let at = d.picture.at;
    let block = panel(t.triplet.clone(), theme);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let when = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |t| format!("{} UTC", t.to_minute()));
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        let name = Span::styled(format!(" {}", fit(name, 19)), theme.quiet());
        lines.extend(broken_line(vec![name], &value, 20, usize::from(inner.width)));
    };
    line("KV key", format!("{}{}", crate::domain::triplet::KV_PREFIX, t.triplet));
    line("route", t.route.clone());
    line("stage", t.stage.clone());
    line("wave", t.wave.map_or_else(|| "-".to_owned(), |w| w.to_string()));
    line("refresh authority", t.refresh.clone());
    line("read authority", format!("{} (epoch {})", t.read, t.epoch));
    line("token version", t.version.to_string());
    line("token age", t.age(at));
    line("captured", when(t.captured_at));
    line("ends", when(t.expires_at));
    for (sink, cell) in d.picture.sinks.iter().zip(&t.sinks) {
        line(&sink.name, format!("{} (last mirror {})", mirrored(cell, at), when(cell.delivered_at)));
    }
    line("verify", t.verify.as_ref().map_or_else(|| "not compared yet".to_owned(), |v| v.text.clone()));
    line("reversible until", when(t.reversible_until));
    if let Some(gone) = &t.dead_grant {
        line("GRANT GONE", gone.clone());
    }
    if let Some(held) = &t.held {
        line("HELD", held.clone());
    }
    for dead in d.picture.dead_letters.iter().filter(|l| l.triplet == t.triplet) {
        line("DEAD LETTER", format!("{}: {}", dead.sink, dead.reason));
    }
    let mine = d.picture.events.iter().rev().filter(|e| e.subject == t.triplet);
    for e in mine.take(5) {
        line("event", format!("{}  {}", e.at.to_minute(), e.text));
    }
    lines.push(Line::default());
    lines.push(Line::styled(" Esc goes back", theme.quiet()));
    frame.render_widget(Paragraph::new(lines), inner);
}
