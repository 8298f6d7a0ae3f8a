//! The quick groups of Autobahn|Testsuite.
//! `cargo xtask test autobahn` runs all of them.

use ws_guard_testkit::{autobahn, tools};

use super::stage::{Stage, unlimited};

/// Number of cases in the quick groups.
const CASES: usize = 301;

#[test]
fn every_case_of_the_quick_groups_is_ok() {
    if !tools::wstest().exists() {
        println!("skipped: Autobahn|Testsuite is not installed: run `cargo xtask setup`");
        return;
    }
    // Some cases send pings in bursts.
    let stage = Stage::start(|config| config.pings = unlimited());
    let folder = tempfile::tempdir().unwrap();
    let mut command =
        autobahn::command(stage.address, &autobahn::QUICK, folder.path(), None).unwrap();
    let output = command.output().unwrap();
    let verdicts = autobahn::verdicts(folder.path());
    let verdicts = verdicts.unwrap_or_else(|error| panic!("{error:#}: {output:?}"));
    for (case, verdict) in &verdicts {
        assert!(verdict.passed(case), "{case}: {verdict:?}");
    }
    assert_eq!(verdicts.len(), CASES);
}
