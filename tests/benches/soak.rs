//! Frames of the soak dashboard with 10,000 triplets: `cargo bench --bench soak`.
//!
//! A frame here is the worst that a person can ask for: a new picture arrives, is filtered and sorted
//! again, and the whole screen is drawn. Printed per screen size: median, 95th percentile, slowest.

use std::time::Instant;

use cutover::domain;
use cutover::soak::picture;
use cutover::soak::{Dashboard, Key, still};

#[path = "../support/soak_sample.rs"]
mod sample;

const TRIPLETS: usize = 10_000;
const FRAMES: usize = 200;

fn main() {
    println!("{TRIPLETS} triplets, {FRAMES} frames each");
    println!("{:>8} {:>16} {:>10} {:>10} {:>10}", "screen", "frame", "median ms", "p95 ms", "max ms");
    for (width, height) in [(80, 24), (120, 40), (200, 60)] {
        for (what, filter) in [("all, by trouble", ""), ("filtered", "gmail mirroring")] {
            let mut d = Dashboard::new("bench", sample::picture(TRIPLETS));
            d.press(Key::Char('/'));
            filter.chars().for_each(|c| {
                d.press(Key::Char(c));
            });
            d.press(Key::Enter);
            let mut times: Vec<f64> = (0..FRAMES as i64)
                .map(|i| {
                    let mut next = sample::picture(TRIPLETS);
                    next.at = next.at.plus_ms(i * 1_000);
                    let start = Instant::now();
                    d.show(next);
                    d.press(Key::Down);
                    std::hint::black_box(still(&mut d, width, height));
                    start.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let at = |share: f64| times[((FRAMES as f64 * share) as usize).min(FRAMES - 1)];
            let screen = format!("{width}x{height}");
            println!("{screen:>8} {what:>16} {:>10.2} {:>10.2} {:>10.2}", at(0.5), at(0.95), at(1.0));
        }
    }
}
