//! What is said of a run: its figures, what they should be, and what was found.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// What a run has to reach.
#[derive(clap::Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// Reconnects that succeed, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 99.95)]
    pub reconnects: f64,
    /// Messages that are lost, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.01)]
    pub loss: f64,
    /// From the end of a connection to the recovered session, 99th percentile, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 800.0)]
    pub p99: f64,
}

impl Default for Targets {
    fn default() -> Targets {
        Targets { reconnects: 99.95, loss: 0.01, p99: 800.0 }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Deliveries {
    pub published: u64,
    pub acknowledged: u64,
    /// Answers that a publication is not stored, after which it was sent again.
    pub refused: u64,
    /// Deliveries of acknowledged publications that there should be, and those there were.
    pub expected: u64,
    pub delivered: u64,
    /// Deliveries missing, and of these the ones that the subscriber was told of.
    pub lost: u64,
    pub told: u64,
    pub gaps: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reconnects {
    pub tried: u64,
    pub succeeded: u64,
    pub attempts: u64,
    /// Sessions that are back without all that was missed, which they were told.
    pub not_recovered: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub last_ms: f64,
    /// With the waits that servers asked for.
    pub with_waits_p99_ms: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Floods {
    pub connections: u64,
    pub sent: u64,
    pub answered: u64,
    /// Answered although over the limit.
    pub over: u64,
}

/// Something that is not as it has to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub kind: String,
    /// The client.
    pub who: String,
    pub text: String,
    /// What its client and publisher logged around that time.
    pub story: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    pub seconds: f64,
    pub targets: Targets,
    pub deliveries: Deliveries,
    pub reconnects: Reconnects,
    pub floods: Floods,
    /// All findings by kind.
    pub counts: BTreeMap<String, u64>,
    /// The first of them.
    pub findings: Vec<Finding>,
    /// Why it has failed; empty if it has passed.
    pub failures: Vec<String>,
}

impl Verdict {
    pub fn new(
        seconds: f64,
        deliveries: Deliveries,
        reconnects: Reconnects,
        floods: Floods,
        counts: BTreeMap<String, u64>,
        findings: Vec<Finding>,
        targets: &Targets,
    ) -> Verdict {
        let targets = targets.clone();
        let failures = Vec::new();
        let mut verdict = Verdict {
            seconds,
            targets,
            deliveries,
            reconnects,
            floods,
            counts,
            findings,
            failures,
        };
        verdict.failures = verdict.failing();
        verdict
    }

    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// Percent; all of none.
    pub fn success(&self) -> f64 {
        percent(self.reconnects.succeeded, self.reconnects.tried).unwrap_or(100.0)
    }

    /// Percent; none of none.
    pub fn loss(&self) -> f64 {
        percent(self.deliveries.lost, self.deliveries.expected).unwrap_or(0.0)
    }

    fn failing(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let Targets { reconnects, loss, p99 } = self.targets;
        if self.success() < reconnects {
            failures.push(format!("{:.3} % of reconnects, target {reconnects} %", self.success()));
        }
        if self.loss() > loss {
            failures.push(format!("{:.4} % of messages lost, target {loss} %", self.loss()));
        }
        if self.reconnects.p99_ms > p99 {
            failures.push(format!(
                "back after {:.0} ms (P99), target {p99} ms",
                self.reconnects.p99_ms
            ));
        }
        // Late ones are what the first target is about.
        let counted =
            self.counts.iter().filter(|(kind, _)| *kind != "late" && *kind != "never back");
        failures.extend(counted.map(|(kind, count)| format!("{kind}: {count}")));
        failures
    }
}

fn percent(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64 * 100.0)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { deliveries: d, reconnects: r, floods, .. } = self;
        writeln!(
            f,
            "reconnects: {} of {} ({:.3} %), in {} attempts; back after {:.0} ms (P50), {:.0} ms (P99), \
             {:.0} ms (last); P99 with waits asked for: {:.0} ms; not recovered: {}",
            r.succeeded,
            r.tried,
            self.success(),
            r.attempts,
            r.p50_ms,
            r.p99_ms,
            r.last_ms,
            r.with_waits_p99_ms,
            r.not_recovered
        )?;
        writeln!(
            f,
            "messages: {} published, {} acknowledged, {} refusals; {} deliveries expected, {} lost \
             ({:.4} %), of which {} told; gaps told: {}",
            d.published,
            d.acknowledged,
            d.refused,
            d.expected,
            d.lost,
            self.loss(),
            d.told,
            d.gaps
        )?;
        writeln!(
            f,
            "flood: {} pings on {} connections, {} answered, {} over the limit",
            floods.sent, floods.connections, floods.answered, floods.over
        )?;
        for Finding { kind, who, text, story } in &self.findings {
            writeln!(f, "- {kind}: {who}: {text}")?;
            for line in story.iter().take(12) {
                writeln!(f, "    {line}")?;
            }
        }
        match self.passed() {
            true => writeln!(f, "PASSED"),
            false => writeln!(f, "FAILED: {}", self.failures.join("; ")),
        }
    }
}
