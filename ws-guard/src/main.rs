//! `ws-guard`: see `ws-guard --help`.
fn main() -> std::process::ExitCode {
    ws_guard::cli::main()
}
