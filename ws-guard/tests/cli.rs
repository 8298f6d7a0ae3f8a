//! The binary for its users, without a loaded guard: messages, exit codes, help.

use std::{os::unix::process::CommandExt, path::Path, process::Command};

use tempfile::TempDir;

/// A run of the binary.
struct Run {
    code: i32,
    out: String,
    err: String,
}

/// Return a command whose control socket and pin directory do not exist.
/// The machine's environment adds no settings.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ws-guard"));
    command
        .env_clear()
        .env("WS_GUARD_CONTROL_SOCKET", dir.join("control.sock"))
        .env("WS_GUARD_PIN_DIR", dir.join("pins"))
        .args(arguments);
    command
}

fn finish(mut command: Command) -> Run {
    let output = command.output().expect("the binary runs");
    Run {
        code: output.status.code().expect("it exits by itself"),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn run(arguments: &[&str]) -> Run {
    let dir = TempDir::new().expect("a directory");
    finish(command(dir.path(), arguments))
}

#[test]
fn help_teaches() {
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for text in ["Examples:", "Exit codes:", "77", "ws-guard unload", "/run/ws-guard/control.sock"]
    {
        assert!(help.out.contains(text), "{text} is missing in\n{}", help.out);
    }
    let help = run(&["run", "--help"]);
    assert_eq!(help.code, 0);
    let flat = help.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [
        "[default: 30] [env: WS_GUARD_MAX_PING_RATE, MAX_PING_RATE]",
        "[default: 10] [env: WS_GUARD_WINDOW_SECONDS, WINDOW_SECONDS]",
        "[default: defuse] [env: WS_GUARD_ACTION]",
        "Precedence:",
        "78",
    ] {
        assert!(flat.contains(text), "{text} is missing in\n{}", help.out);
    }
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [
        &["frobnicate"][..],
        &["sources", "-o", "yaml"],
        &["sources", "--state", "angry"],
        &["throttle"],
        &["throttle", "10.0.0.1", "--for", "soon"],
        &["throttle", "10.0.0.1", "--for", "0s"],
        &["allow", "--remove"],
        &["events", "--since", "soon"],
        &["events", "--source", "ten"],
        &["policy", "set"],
        &[],
    ] {
        assert_eq!(run(arguments).code, 2, "{arguments:?}");
    }
}

#[test]
fn top_without_a_terminal_names_the_way_without_one() {
    let top = run(&["top"]);
    assert_eq!(top.code, 1);
    assert!(top.err.contains("no terminal") && top.err.contains("--once"), "{}", top.err);
    assert_eq!(run(&["top", "-o", "json"]).code, 2);
    assert_eq!(run(&["top", "--once", "--sort", "beauty"]).code, 2);
}

#[test]
fn an_unknown_kind_of_event_is_answered_with_the_known_ones() {
    let run = run(&["events", "--kind", "throtled"]);
    assert_eq!(run.code, 2);
    for kind in ["throttled", "released", "missed", "flow_opened"] {
        assert!(run.err.contains(kind), "{kind} is missing in {}", run.err);
    }
}

/// Write a capture with a header and no packet, followed by `more`.
fn capture(dir: &Path, more: &[u8]) -> String {
    let path = dir.join("app.pcap");
    let head = [0xD4, 0xC3, 0xB2, 0xA1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
    std::fs::write(&path, [&head[..], more].concat()).expect("a file");
    path.display().to_string()
}

#[test]
fn inspect_reports_what_it_could_read_and_exits_by_what_it_could_not() {
    let dir = TempDir::new().expect("a directory");
    for (more, code) in [(&b""[..], 0), (b"half a packet's header", 65)] {
        let file = capture(dir.path(), more);
        let report = run(&["inspect", &file, "-o", "json"]);
        assert_eq!(report.code, code, "{}", report.err);
        let json: serde_json::Value = serde_json::from_str(&report.out).expect("a document");
        assert_eq!((&json["flows"], &json["files"][0]), (&serde_json::json!([]), &file.into()));
        assert_eq!(report.err.contains("offset 24"), code == 65, "{}", report.err);
    }
    let missing = run(&["inspect", "/nonexistent/app.pcap"]);
    assert_eq!(missing.code, 66);
    assert!(missing.err.contains("/nonexistent/app.pcap"), "{}", missing.err);
    assert_eq!(run(&["inspect"]).code, 2);
    assert_eq!(run(&["inspect", "-", "--kind", "nonsense"]).code, 2);
}

#[test]
fn a_bad_configuration_exits_64_and_lists_everything() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("guard.toml");
    std::fs::write(&file, "port = 80\nmax-ping-rat = 5\n").expect("a file");
    let mut command = command(dir.path(), &["run", "--action", "explode", "--config"]);
    command.arg(&file).env("WINDOW_SECONDS", "ten");
    let run = finish(command);
    assert_eq!(run.code, 64, "{}", run.err);
    assert!(run.err.contains("the configuration has 3 errors"), "{}", run.err);
    assert!(
        run.err.contains("guard.toml:2: max-ping-rat: unknown key: did you mean max-ping-rate?")
    );
    assert!(run.err.contains("--action: \"explode\""), "{}", run.err);
    assert!(run.err.contains("WINDOW_SECONDS: \"ten\""), "{}", run.err);
    let missing = finish(self::command(dir.path(), &["run"]));
    assert_eq!(missing.code, 64);
    assert!(missing.err.contains("--interface") && missing.err.contains("--port"));
    let set = finish(self::command(dir.path(), &["policy", "set", "--port", "70000"]));
    assert_eq!(set.code, 64);
}

#[test]
fn without_a_daemon_changes_exit_69_and_say_what_to_do() {
    for arguments in [
        &["throttle", "10.0.0.1"][..],
        &["release", "10.0.0.1"],
        &["allow", "10.0.0.0/8"],
        &["policy", "set", "--action", "drop"],
        &["events"],
        &["events", "--follow"],
    ] {
        let run = run(arguments);
        assert_eq!(run.code, 69, "{arguments:?}: {}", run.err);
        assert!(run.err.contains("no daemon listens on"), "{}", run.err);
        assert!(run.err.contains("ws-guard run"), "{}", run.err);
    }
}

#[test]
fn without_pins_listings_exit_69_and_name_the_directory() {
    if let Some(reason) = ws_guard_testkit::skip_reason() {
        println!("skipped: {reason}");
        return;
    }
    for listing in ["status", "sources", "throttled", "flows", "allow", "unload"] {
        let run = run(&[listing]);
        assert_eq!(run.code, 69, "{listing}: {}", run.err);
        assert!(run.err.contains("no guard is loaded under"), "{}", run.err);
        assert!(run.err.contains("pins"), "{}", run.err);
    }
}

#[test]
fn without_privileges_run_exits_77_and_names_them() {
    if let Some(reason) = ws_guard_testkit::skip_reason() {
        println!("skipped: {reason}");
        return;
    }
    let dir = TempDir::new().expect("a directory");
    // Copied to where an unprivileged user can run it from.
    let binary = dir.path().join("ws-guard");
    std::fs::copy(env!("CARGO_BIN_EXE_ws-guard"), &binary).expect("a copy");
    open(dir.path());
    let mut command = Command::new(&binary);
    command
        .env_clear()
        .args(["run", "--interface", "lo", "--port", "9001"])
        .uid(65_534)
        .gid(65_534);
    let run = finish(command);
    assert_eq!(run.code, 77, "{}", run.err);
    for capability in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] {
        assert!(run.err.contains(capability), "{}", run.err);
    }
}

/// Make a directory accessible to everyone.
fn open(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir, everybody).expect("a mode");
}

#[test]
fn completions_for_every_shell() {
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c")] {
        let run = run(&["completions", shell]);
        assert_eq!(run.code, 0);
        assert!(run.out.contains(mark) && run.out.contains("throttled"), "{shell}");
    }
}

#[test]
fn doctor_answers_in_json_and_fails_with_a_missing_interface() {
    let run = run(&["doctor", "--interface", "no-such-if", "-o", "json"]);
    assert_eq!(run.code, 1, "{}", run.err);
    let checks: Vec<serde_json::Value> = serde_json::from_str(&run.out).expect("JSON");
    let find = |name: &str| {
        checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(find("no-such-if exists")["verdict"], "fail");
    assert!(find("no-such-if exists")["remedy"].is_string());
    for name in ["kernel", "btf", "capabilities", "bpffs", "jit", "bpf_loop", "daemon"] {
        assert!(["ok", "warn", "fail"].map(Into::into).contains(&find(name)["verdict"]));
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let dir = TempDir::new().expect("a directory");
    let mut shell = Command::new("sh");
    let binary = env!("CARGO_BIN_EXE_ws-guard");
    shell.args(["-c", &format!("{binary} completions zsh | head -c 10; exit 0")]);
    shell.current_dir(dir.path());
    let run = finish(shell);
    assert_eq!(run.out.len(), 10);
    assert!(!run.err.contains("panicked"), "{}", run.err);
}

#[test]
fn a_wrong_variable_is_blamed_and_no_flag() {
    let dir = TempDir::new().expect("a directory");
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    for (name, value) in [
        ("WS_GUARD_MAX_CONNECTIONS", "abc"),
        ("WS_GUARD_MAX_PING_RATE", "4000000000"),
        ("WS_GUARD_WINDOW_SECONDS", "0"),
        ("WS_GUARD_PING_INTERVAL", "x"),
        ("WS_GUARD_ALLOW_ORIGIN", "*"),
        ("WS_GUARD_METRICS_LISTEN", "9464"),
        ("WS_GUARD_TRUSTED_PROXY", "10.0.0.1,x"),
        ("WS_GUARD_REQUIRE_USER", "maybe"),
        ("WS_GUARD_PROXY_PROTOCOL", "2"),
        ("WS_GUARD_NO_COMPRESSION", "on please"),
    ] {
        let mut command = command(dir.path(), &serve);
        command.env(name, value);
        let run = finish(command);
        assert_eq!(run.code, 64, "{name}: {}", run.err);
        let value = value.rsplit(',').next().unwrap_or(value);
        assert!(run.err.contains(name) && run.err.contains(value), "{}", run.err);
        assert!(!run.err.contains("--max"), "{}", run.err);
    }
    // The flag, where it was given.
    let mut both = command(dir.path(), &[&serve[..], &["--max-connections=x"]].concat());
    both.env("WS_GUARD_MAX_CONNECTIONS", "7");
    let both = finish(both);
    assert_eq!(both.code, 2, "{}", both.err);
    assert!(both.err.contains("'--max-connections <N>'"), "{}", both.err);
    // Two that exclude each other.
    let mut conflict = command(dir.path(), &[&serve[..], &["--user-from", "query:user"]].concat());
    conflict.env("WS_GUARD_TOKEN_KEY", "key.pem");
    let conflict = finish(conflict);
    assert_eq!(conflict.code, 64, "{}", conflict.err);
    for text in ["WS_GUARD_TOKEN_KEY", "--user-from"] {
        assert!(conflict.err.contains(text), "{}", conflict.err);
    }
}
