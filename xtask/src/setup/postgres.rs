//! Debian's PostgreSQL, the store of chaos runs.
//!
//! Unpacked where it is not installed: Debian's package makes a database and starts a service.
use anyhow::Result;
use ws_guard_testkit::tools;

use super::{install, system};
use crate::step;

pub struct Component;

const PACKAGES: [&str; 2] = ["postgresql-15", "postgresql-client-15"];

impl super::Component for Component {
    fn name(&self) -> &'static str {
        "PostgreSQL"
    }

    fn present(&self) -> Option<String> {
        let ready = tools::postgres().join("pg_isready");
        let server = tools::postgres().join("postgres");
        step::output(ready.to_str()?, &["--version"])?;
        step::output(server.to_str()?, &["--version"])
    }

    fn install(&self) -> Result<()> {
        let [server, client] = PACKAGES;
        let place = tools::root().join(server);
        system::apt_unpack(server, &place)?;
        let apart = tools::root().join(client);
        system::apt_unpack(client, &apart)?;
        let programs = "usr/lib/postgresql/15/bin";
        for program in ["pg_isready", "psql"] {
            let from = apart.join(programs).join(program);
            std::fs::copy(&from, place.join(programs).join(program))?;
        }
        Ok(())
    }
}

/// Make sure that it is there.
pub fn postgres() -> Result<()> {
    let components: [Box<dyn super::Component>; 2] =
        [Box::new(system::POSTGRES_LIBRARIES), Box::new(Component)];
    install(components).map(drop)
}
