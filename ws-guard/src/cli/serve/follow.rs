//! Changes while `serve` runs: the file's section, and the certificate.

use std::{path::PathBuf, sync::Arc};

use tokio::signal::unix::Signal;
use ws_guard_server::{
    tls::Tls,
    watch::{Watch, changed},
};

use crate::config::{reloadable::Reloadable, server::ServerSection};

/// Files to follow, and the server they configure.
pub struct Follow {
    pub file: Option<PathBuf>,
    /// Watch of the same file, started before the section in force was read.
    pub watch: Option<Watch>,
    pub server: Reloadable,
    pub tls: Option<Arc<Tls>>,
}

impl Follow {
    /// Apply changes of the files, and reload them on SIGHUP, forever.
    pub async fn run(mut self, mut hangup: Signal) {
        let tls = self.tls.clone();
        let certificate = async {
            match tls {
                Some(tls) => tls.follow().await,
                None => std::future::pending().await,
            }
        };
        let table = async {
            loop {
                tokio::select! {
                    Some(()) = hangup.recv() => self.reload_certificate(),
                    () = changed(&mut self.watch) => {}
                }
                self.reload_table();
            }
        };
        tokio::join!(certificate, table);
    }

    fn reload_certificate(&self) {
        match self.tls.as_ref().map(|tls| tls.reload()) {
            Some(Err(error)) => tracing::warn!("the old certificate stays in use: {error}"),
            Some(Ok(())) => tracing::info!("took over the certificate"),
            None => {}
        }
    }

    fn reload_table(&self) {
        let Some(file) = &self.file else { return };
        let section = ServerSection::load(file).map_err(|error| error.lines().join("; "));
        let (rows, topics) = section
            .as_ref()
            .map_or((0, 0), |section| (section.protocols.rows.len(), section.topics.0.len()));
        let set =
            section.and_then(|section| self.server.set(section).map_err(|error| error.to_string()));
        match set {
            Ok(()) => tracing::info!(
                "took over {rows} subprotocols and {topics} rules of topics from {}",
                file.display()
            ),
            Err(error) => tracing::warn!("the old subprotocols and topics stay in force: {error}"),
        }
    }
}
