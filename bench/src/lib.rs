//! What the servers of the benchmark have in common: one thread, one runtime, a port of their own,
//! `TCP_NODELAY`, and a line that says where they listen. Each is written as its library's users
//! write one, with the library's defaults.

use std::{future::Future, net::Ipv4Addr};

use anyhow::Result;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinSet, LocalSet},
};

/// Accept until killed; `serve` is one connection's life.
pub fn run<F>(serve: impl Fn(TcpStream) -> F + 'static) -> Result<()>
where
    F: Future<Output = Result<()>> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("listening on {}", listener.local_addr()?);
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    tasks.spawn_local(serve(stream));
                }
                // A client that leaves is no news.
                Some(_) = tasks.join_next() => {}
            }
        }
    })
}
