//! What the keys do and what the marks mean.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Clear, Paragraph};

use super::theme::Theme;

const TEXT: [&str; 20] = [
    "1-6, Tab      pages            ↑ ↓ j k    move",
    "PgUp PgDn     a screen         g G        first, last",
    "Enter         one triplet      Esc        back, clear filter",
    "/             filter: words of triplet, stage, authority, outcome",
    "s S           next sorting, backwards",
    "p             freeze           r          fetch now",
    "q             quit",
    "",
    "criteria   pass, FAIL, wait (not enough evidence), wvd (waived)",
    "           observed/threshold: at least   observed≤threshold: at most",
    "           ↗ moves to the better, ↘ to the worse",
    "triplets   G its grant is gone, H held, ! wants attention",
    "life       ▓ the share of the token's life that is over",
    "sinks      time since the last mirror; + a newer one waits;",
    "           DEAD given up, see `cutover repair`",
    "",
    "The verdict is the worst criterion that is not waived.",
    "`cutover gate` judges with evidence that a machine can check.",
    "",
    "Any key closes this.",
];

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let (width, height) = (area.width.min(72), area.height.min(TEXT.len() as u16 + 2));
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let block = Block::new().borders(Borders::ALL).border_style(theme.title()).title(" help ");
    let lines: Vec<Line<'_>> = TEXT.into_iter().map(|t| Line::raw(format!(" {t}"))).collect();
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}
