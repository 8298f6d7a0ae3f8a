//! fastwebsockets. It has no `Sink`: each message is written by itself.

use std::convert::Infallible;

use anyhow::Result;
use fastwebsockets::{FragmentCollector, OpCode, upgrade};
use http_body_util::Empty;
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub async fn serve(stream: TcpStream) -> Result<()> {
    let answer = service_fn(async |mut request: Request<hyper::body::Incoming>| {
        let answer = match upgrade::upgrade(&mut request) {
            Ok((response, socket)) => {
                tokio::spawn(tokio::task::unconstrained(async move {
                    let _ = echo(socket).await;
                }));
                response
            }
            Err(_) => {
                let mut refusal = Response::new(Empty::<Bytes>::new());
                *refusal.status_mut() = hyper::StatusCode::BAD_REQUEST;
                refusal
            }
        };
        Ok::<_, Infallible>(answer)
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades().await?;
    Ok(())
}

async fn echo(socket: upgrade::UpgradeFut) -> Result<()> {
    let mut socket = FragmentCollector::new(socket.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}
