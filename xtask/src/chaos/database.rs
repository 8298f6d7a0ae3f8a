//! The database of the runs: the one that is named, or one of this workspace's own.
use std::path::Path;

use anyhow::Result;
use ws_guard_testkit::postgres::Postgres;

use crate::setup;

/// A database that can be reached; one that was started here ends when it is dropped.
pub struct Database {
    pub url: String,
    _own: Option<Postgres>,
}

impl Database {
    /// The one of this URL, or one of our own with its files in `home`.
    pub fn open(url: Option<&str>, home: &Path) -> Result<Database> {
        if let Some(url) = url {
            return Ok(Database { url: url.to_owned(), _own: None });
        }
        setup::postgres()?;
        let own = Postgres::start(&home.join("postgres"))?;
        Ok(Database { url: own.url.clone(), _own: Some(own) })
    }
}
