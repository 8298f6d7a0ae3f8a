//! `ws-guard allow`.

use clap::Args;
use hyper::Method;

use super::{
    Global,
    backend::{Backend, daemon},
    output::{Column, Listing, Table, plural, print, show},
};
use crate::{
    api::message::Allow,
    domain::origin::{AllowView, Origin},
};

const HELP: &str = "\
Entries added here outlive the daemon; the configuration's are removed with it.

Examples:
  ws-guard allow                          list
  ws-guard allow 10.0.0.0/8               add a network
  ws-guard allow fd77::1                  add the source that this address belongs to
  ws-guard allow 10.0.0.0/8 --remove      remove it again";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct AllowCommand {
    /// Address or network to count and never act on; lists them all when left out
    #[arg(value_name = "CIDR")]
    network: Option<String>,
    /// Take it off the list
    #[arg(long, requires = "network")]
    remove: bool,
    #[command(flatten)]
    listing: Listing,
}

impl AllowCommand {
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let Some(network) = &self.network else {
            let read = async || Backend::connect(global).await?.allow().await;
            return show(&self.listing, read, |views, _| table(views).render(false)).await;
        };
        let client = daemon(global).await?;
        let wanted = Allow { network: network.clone() };
        let method = if self.remove { Method::DELETE } else { Method::POST };
        let views: Vec<AllowView> = client.send(method, "/v1/allow", &wanted).await?;
        match self.listing.output {
            super::output::Format::Json => print(&(serde_json::to_string_pretty(&views)? + "\n")),
            _ => print(&table(&views).render(false)),
        }
    }
}

fn table(views: &[AllowView]) -> Table {
    let origin = |view: &AllowView| match view.origin {
        Origin::Config => "config",
        Origin::Runtime => "runtime",
    };
    Table {
        columns: vec![Column::text("NETWORK"), Column::text("ORIGIN")],
        rows: views.iter().map(|view| vec![view.network.clone(), origin(view).into()]).collect(),
        count: plural(views.len(), "network", "networks"),
    }
}
