//! What was measured, for people.

use super::{
    super::server::table::table,
    fan_out::{Figures, Load},
    servers::Sharing,
};

/// What the better of the others is to be beaten by, in deliveries a CPU second under the same load.
const GOAL: f64 = 1.5;

pub fn fan_out(results: &[Figures]) -> String {
    let header =
        ["LOAD", "SERVERS", "MSG/S", "PER CPU S", "P50 MS", "P99 MS", "REDIS", "DELIVERED"];
    let text = table(
        header,
        results.iter().map(|figures| {
            let load = match figures.load {
                Load::Same => "the same",
                Load::Full => "as answered",
            };
            [
                load.into(),
                figures.who.name().into(),
                format!("{:.0}", figures.deliveries_per_second),
                format!("{:.0}", figures.deliveries_per_cpu_second),
                format!("{:.2}", figures.p50_ms),
                format!("{:.2}", figures.p99_ms),
                format!("{:.0} %", figures.redis * 100.0),
                format!("{:.1} %", figures.delivered * 100.0),
            ]
        }),
    );
    let same = || results.iter().filter(|figures| figures.load == Load::Same);
    let Some(ours) = same().find(|figures| figures.who == Sharing::WsGuard) else {
        return text;
    };
    let others = || same().filter(|figures| figures.who != Sharing::WsGuard);
    let most = others().map(|figures| figures.deliveries_per_cpu_second).fold(0.0, f64::max);
    let least = others().map(|figures| figures.p99_ms).fold(f64::INFINITY, f64::min);
    let ratio = ours.deliveries_per_cpu_second / most;
    let tail = ours.p99_ms / least;
    let verdict = if ratio >= GOAL && tail <= 1.0 { "ok" } else { "SHORT" };
    format!(
        "{text}\n\nunder the same load: {ratio:.2} times the deliveries a CPU second of the better (goal \
         {GOAL}), p99 {tail:.2} times the least of theirs (goal 1.0): {verdict}"
    )
}
