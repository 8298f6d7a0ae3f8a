//! `cargo xtask setup`: everything that a machine needs to build and test.
//!
//! Each [`Component`] can tell quickly whether it is there, so that a second run does nothing. The
//! other commands call [`ebpf`] and [`all`] themselves. Everything except system packages goes
//! below `target/tools`, so no installed tools are replaced.
mod autobahn;
mod client;
mod crates;
mod deploy;
mod foreign;
pub mod linker;
mod postgres;
mod proxies;
mod system;
mod toolchain;

use std::time::Instant;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use ws_guard_testkit::servers::Library;

pub use deploy::{Linkage, linkage};
pub use postgres::postgres;
pub use system::{apt_update, faketime, program};
pub use toolchain::Toolchain;

use crate::vm::{self, Kernel, Release};

#[derive(clap::Args)]
pub struct Args {
    /// Install nothing; show what is there and what is missing, and fail when something is
    #[arg(long)]
    check: bool,
}

/// Something that setup installs.
pub trait Component {
    fn name(&self) -> &'static str;
    /// Return the installed version, or `None`. Takes a fraction of a second.
    fn present(&self) -> Option<String>;
    fn install(&self) -> Result<()>;
}

/// Components to compile the kernel programs, in the order of installation.
fn for_ebpf() -> Vec<Box<dyn Component>> {
    vec![Box::new(toolchain::Component), Box::new(system::LLVM), Box::new(linker::Component)]
}

/// Components of the demonstration besides cargo's, with the server on `library`.
fn for_demo(library: Library) -> Vec<Box<dyn Component>> {
    let mut components: Vec<Box<dyn Component>> = vec![Box::new(system::NETWORK)];
    match library {
        Library::TokioTungstenite => {}
        Library::Python => {
            components.extend([Box::new(system::PYTHON) as _, Box::new(foreign::Python) as _]);
        }
        Library::Ws => components.extend([Box::new(system::NODE) as _, Box::new(foreign::Ws) as _]),
        Library::Gorilla => {
            components.extend([Box::new(system::GO) as _, Box::new(foreign::Gorilla) as _]);
        }
    }
    components
}

/// Components that the tests need in addition to the eBPF toolchain.
fn for_tests() -> Vec<Box<dyn Component>> {
    let mut components: Vec<Box<dyn Component>> = Vec::new();
    for library in Library::ALL {
        for component in for_demo(library) {
            if components.iter().all(|other| other.name() != component.name()) {
                components.push(component);
            }
        }
    }
    components.push(Box::new(autobahn::Component));
    components.extend([Box::new(system::CAPTURES) as _, Box::new(system::BROWSER) as _]);
    components.push(Box::new(client::Component));
    components.push(Box::new(system::TERMINAL));
    components.push(Box::new(system::REDIS));
    components.extend([Box::new(system::PROXY_LIBRARIES) as _, Box::new(proxies::NGINX) as _]);
    components.extend(proxies::NGINX_LUA.map(|package| Box::new(package) as _));
    components.push(Box::new(proxies::HAPROXY));
    components
        .extend([Box::new(system::POSTGRES_LIBRARIES) as _, Box::new(postgres::Component) as _]);
    components.extend(for_image());
    components.extend([Box::new(system::CONTAINERS) as _, Box::new(deploy::PROMETHEUS) as _]);
    components.extend([Box::new(deploy::ALERTMANAGER) as _, Box::new(deploy::Rotel) as _]);
    components
}

/// Components to make the container image.
fn for_image() -> Vec<Box<dyn Component>> {
    vec![Box::new(system::IMAGE), Box::new(deploy::Static)]
}

/// Components for the tests on other kernels.
/// Where they are unavailable, those tests are skipped.
fn for_machines() -> Vec<Box<dyn Component>> {
    let [oldest, later] = vm::TESTED;
    vec![
        Box::new(system::MACHINES),
        Box::new(vm::kernel::Component(oldest.here(), "oldest supported kernel")),
        Box::new(vm::kernel::Component(later.here(), "later kernel")),
    ]
}

pub fn main(args: Args) -> Result<()> {
    let components = for_ebpf().into_iter().chain(for_tests());
    if args.check {
        return check(components.chain(for_machines()));
    }
    let start = Instant::now();
    let mut installed = install(components)?;
    match machines_can_run().and_then(|()| install(for_machines())) {
        Ok(more) => installed += more,
        Err(error) => eprintln!("{error:#}; the tests on other kernels will be skipped"),
    }
    let time = start.elapsed().as_secs_f64();
    match installed {
        0 => println!("everything is installed already; looked for {time:.1} s"),
        n => println!("installed {n} components in {time:.0} s"),
    }
    Ok(())
}

/// Make sure that the kernel programs can be compiled.
pub fn ebpf() -> Result<Toolchain> {
    install(for_ebpf())?;
    toolchain::find().context("the eBPF toolchain is gone again after its installation")
}

/// Make sure that the demonstration can run.
pub fn demo(library: Library) -> Result<()> {
    install(for_demo(library)).map(drop)
}

/// Make sure that programs in Python can run.
pub fn python() -> Result<()> {
    let components: [Box<dyn Component>; 2] = [Box::new(system::PYTHON), Box::new(foreign::Python)];
    install(components).map(drop)
}

/// Make sure that Autobahn|Testsuite can run.
pub fn autobahn() -> Result<()> {
    install([Box::new(autobahn::Component) as Box<dyn Component>]).map(drop)
}

/// Make sure that the container image can be made.
pub fn image() -> Result<()> {
    install(for_image()).map(drop)
}

/// Make sure that the Debian package can be made.
pub fn package() -> Result<()> {
    install(for_image().into_iter().chain([Box::new(crates::CARGO_DEB) as _])).map(drop)
}

/// Make sure that Debian's checkers of a package can run.
pub fn package_checks() -> Result<()> {
    install([Box::new(system::PACKAGE_CHECKS) as Box<dyn Component>]).map(drop)
}

/// Make sure that everything of a release can be made.
pub fn release() -> Result<()> {
    package()?;
    arm64()?;
    install([Box::new(crates::CARGO_CYCLONEDX) as Box<dyn Component>]).map(drop)
}

/// Make sure that the program can be compiled for arm64, and run.
pub fn arm64() -> Result<()> {
    let components: [Box<dyn Component>; 4] = [
        Box::new(system::MACHINES),
        Box::new(system::ARM64),
        Box::new(deploy::Static),
        Box::new(deploy::Arm64),
    ];
    install(components).map(drop)
}

/// Make sure that a cluster can be made.
pub fn cluster() -> Result<()> {
    let components: [Box<dyn Component>; 7] = [
        Box::new(system::NETWORK),
        Box::new(system::PYTHON),
        Box::new(foreign::Python),
        Box::new(system::GO),
        Box::new(foreign::Gorilla),
        Box::new(system::PROXY_LIBRARIES),
        Box::new(proxies::NGINX),
    ];
    install(components).map(drop)
}

/// Make sure that sockudo's server can be compiled.
pub fn sockudo() -> Result<()> {
    install([Box::new(system::PROTOBUF) as Box<dyn Component>]).map(drop)
}

/// Components of chaos runs.
fn for_chaos() -> Vec<Box<dyn Component>> {
    let mut components: Vec<Box<dyn Component>> = vec![
        Box::new(system::NETWORK),
        Box::new(system::NODE),
        Box::new(client::Component),
        Box::new(system::REDIS),
        Box::new(system::PROXY_LIBRARIES),
        Box::new(proxies::NGINX),
        Box::new(system::FAKETIME),
        Box::new(system::POSTGRES_LIBRARIES),
        Box::new(postgres::Component),
    ];
    components.extend(proxies::NGINX_LUA.map(|package| Box::new(package) as _));
    components
}

/// Make sure that a chaos run can be made.
pub fn chaos() -> Result<()> {
    install(for_chaos()).map(drop)
}

/// Make sure that everything can be built and tested.
pub fn all() -> Result<Toolchain> {
    install(for_tests())?;
    ebpf()
}

/// Make sure that a machine with a kernel of this series can be booted.
pub fn machine(release: Release) -> Result<Kernel> {
    machines_can_run()?;
    install([Box::new(system::MACHINES) as _])?;
    release.here().fetch()
}

/// Check that the machines can run programs compiled for this one.
fn machines_can_run() -> Result<()> {
    let ours = std::env::consts::ARCH;
    anyhow::ensure!(ours == "x86_64", "the kernels are for x86_64, and the tests for {ours}");
    Ok(())
}

/// Install missing components; return their number.
fn install(components: impl IntoIterator<Item = Box<dyn Component>>) -> Result<usize> {
    let mut installed = 0;
    for component in components {
        if component.present().is_some() {
            continue;
        }
        eprintln!("{} is missing, installing it:", component.name());
        component.install().with_context(|| format!("installing {}", component.name()))?;
        let version = component.present().with_context(|| {
            format!(
                "{} was installed but is not found; see `cargo xtask setup --check`",
                component.name()
            )
        })?;
        eprintln!("{}: {version}", component.name());
        installed += 1;
    }
    Ok(installed)
}

fn check(components: impl IntoIterator<Item = Box<dyn Component>>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["COMPONENT", "STATE"]);
    let mut missing = 0;
    for component in components {
        let state = component.present();
        missing += usize::from(state.is_none());
        table.add_row([component.name(), state.as_deref().unwrap_or("missing")]);
    }
    println!("{table}");
    anyhow::ensure!(missing == 0, "{missing} components are missing: run `cargo xtask setup`");
    Ok(())
}
