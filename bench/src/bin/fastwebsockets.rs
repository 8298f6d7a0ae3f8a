//! Echo on fastwebsockets.
use std::convert::Infallible;

use anyhow::Result;
use fastwebsockets::{FragmentCollector, OpCode, upgrade};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

async fn echo(upgraded: upgrade::UpgradeFut) -> Result<()> {
    let mut socket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}

fn main() -> Result<()> {
    ws_guard_bench::run(async |stream| {
        let service = service_fn(async |mut request: Request<Incoming>| {
            let (response, upgraded) = upgrade::upgrade(&mut request)
                .map_err(drop)
                .unwrap_or_else(|()| std::process::exit(1));
            tokio::task::spawn_local(echo(upgraded));
            Ok::<_, Infallible>(response)
        });
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await?;
        Ok(())
    })
}
