//! The release gate: three failed runs in a row block a release.

use std::fmt::Write;

use anyhow::{Result, bail};

use crate::store::{Database, Run, Store};

/// So many in a row.
const ROW: usize = 3;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    database: Database,
}

pub async fn run(args: &Args) -> Result<()> {
    let runs = Store::open(&args.database).await?.runs(ROW as u32).await?;
    match blocked(&runs) {
        Some(why) => bail!("{why}"),
        None => println!("{}", open(&runs)),
    }
    Ok(())
}

/// Why a release is blocked by the latest runs, the last one last, and what would unblock it.
fn blocked(runs: &[Run]) -> Option<String> {
    if runs.len() < ROW || runs.iter().any(|run| run.passed) {
        return None;
    }
    let mut text = format!("the release is blocked: the last {ROW} chaos runs have failed\n");
    for run in runs {
        // A String takes all that is written to it.
        let _ = writeln!(
            text,
            "- {} (seed {}, {}): {}",
            run.name,
            run.seed,
            run.version,
            run.failures.join("; ")
        );
    }
    let last = runs.last()?;
    let _ = write!(
        text,
        "One run that passes unblocks it: mend what is named above, which `cargo xtask chaos --seed {} \
         --minutes {}` shows again, and run `cargo xtask chaos`.",
        last.seed, last.minutes
    );
    Some(text)
}

fn open(runs: &[Run]) -> String {
    let failed = runs.iter().rev().take_while(|run| !run.passed).count();
    match runs.len() {
        0 => "the release is not blocked: no chaos run is stored".to_owned(),
        _ if failed == 0 => "the release is not blocked: the last chaos run has passed".to_owned(),
        _ => format!(
            "the release is not blocked yet: {failed} failed chaos runs in a row, {ROW} would block it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::stored;

    #[test]
    fn three_failures_in_a_row_block() {
        let runs =
            |passed: &[bool]| passed.iter().map(|passed| stored(*passed)).collect::<Vec<_>>();
        assert_eq!(blocked(&runs(&[false, false])), None);
        assert_eq!(blocked(&runs(&[true, false, false])), None);
        let why = blocked(&runs(&[false, false, false])).unwrap();
        assert!(why.contains("back after 900 ms") && why.contains("--seed 7"), "{why}");
        assert!(open(&runs(&[true, false, false])).contains("2 failed"));
    }
}
