//! How clients came back: how many, and how long it took from the end to the recovered session.

use std::collections::HashMap;

use super::Found;
use crate::{log::Event, verdict};

/// A session that is not back by then, waits that the server asked for not counted, is a failure.
const LIMIT_MS: f64 = 10_000.0;

/// A client on its way back.
struct Away {
    since: u64,
    why: String,
    waits_ms: u64,
    attempts: u64,
}

#[derive(Default)]
pub struct Reconnects {
    away: HashMap<String, Away>,
    /// Times in milliseconds: without the waits that were asked for, and with them.
    times: Vec<(f64, f64)>,
    failed: Vec<Found>,
    attempts: u64,
    not_recovered: u64,
}

impl Reconnects {
    pub fn take(&mut self, at: u64, who: &str, event: &Event) {
        match event {
            Event::Closed { why } => {
                let away = Away { since: at, why: why.clone(), waits_ms: 0, attempts: 1 };
                self.away.insert(who.to_owned(), away);
            }
            Event::Wait { ms } => {
                if let Some(away) = self.away.get_mut(who) {
                    away.waits_ms += ms;
                }
            }
            Event::Failed { .. } => {
                if let Some(away) = self.away.get_mut(who) {
                    away.attempts += 1;
                }
            }
            Event::Open { recovered } => {
                if let Some(away) = self.away.remove(who) {
                    self.back(at, who, &away, *recovered);
                }
            }
            _ => {}
        }
    }

    fn back(&mut self, at: u64, who: &str, away: &Away, recovered: bool) {
        let all = at.saturating_sub(away.since) as f64 / 1000.0;
        let own = (all - away.waits_ms as f64).max(0.0);
        self.attempts += away.attempts;
        self.not_recovered += u64::from(!recovered);
        self.times.push((own, all));
        if own > LIMIT_MS {
            let Away { why, attempts, .. } = away;
            let text = format!("back {own:.0} ms after {why:?}, in {attempts} attempts");
            self.failed.push(Found { kind: "late", who: who.to_owned(), text, at });
        }
    }

    pub fn judge(mut self, found: &mut Vec<Found>) -> verdict::Reconnects {
        let stranded = self.away.len();
        for (who, away) in self.away {
            let Away { since, why, attempts, .. } = away;
            let text = format!("never back after {why:?}, in {attempts} attempts");
            found.push(Found { kind: "never back", who, text, at: since });
        }
        let (tried, late) = (self.times.len() + stranded, self.failed.len());
        found.append(&mut self.failed);
        let mut own: Vec<f64> = self.times.iter().map(|(own, _)| *own).collect();
        let mut all: Vec<f64> = self.times.iter().map(|(_, all)| *all).collect();
        own.sort_unstable_by(f64::total_cmp);
        all.sort_unstable_by(f64::total_cmp);
        verdict::Reconnects {
            tried: tried as u64,
            succeeded: (tried - stranded - late) as u64,
            attempts: self.attempts,
            not_recovered: self.not_recovered,
            p50_ms: at(&own, 0.5),
            p99_ms: at(&own, 0.99),
            last_ms: at(&own, 1.0),
            with_waits_p99_ms: at(&all, 0.99),
        }
    }
}

/// The value below or at which this part of all sorted values is; 0 of none.
fn at(sorted: &[f64], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
