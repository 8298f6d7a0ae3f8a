//! What was measured, for people.

use super::{
    super::server::table::table,
    fan_out::{Figures, Load},
    servers::Sharing,
};

/// What the other is to be beaten by, in deliveries a CPU second under the same load.
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
    let of = |who| results.iter().find(|f| f.who == who && f.load == Load::Same);
    let (Some(ours), Some(other)) = (of(Sharing::WsGuard), of(Sharing::SocketIo)) else {
        return text;
    };
    let ratio = ours.deliveries_per_cpu_second / other.deliveries_per_cpu_second;
    let tail = ours.p99_ms / other.p99_ms;
    let verdict = if ratio >= GOAL && tail <= 1.0 { "ok" } else { "SHORT" };
    format!(
        "{text}\n\nunder the same load: {ratio:.2} times the deliveries a CPU second (goal {GOAL}), p99 \
         {tail:.2} times theirs (goal 1.0): {verdict}"
    )
}
