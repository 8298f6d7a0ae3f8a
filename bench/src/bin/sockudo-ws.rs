//! Echo on sockudo-ws.
use anyhow::{Result, bail};
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use sockudo_ws::{
    Config, WebSocketStream,
    handshake::{build_response, generate_accept_key, parse_request},
    protocol::Message,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn upgrade(stream: &mut TcpStream) -> Result<()> {
    let mut head = BytesMut::with_capacity(4096);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            bail!("the client left");
        }
        if let Some((request, _)) = parse_request(&head)? {
            let response = build_response(&generate_accept_key(request.key), None, None);
            return Ok(stream.write_all(&response).await?);
        }
    }
}

fn main() -> Result<()> {
    ws_guard_bench::run(async |mut stream| {
        upgrade(&mut stream).await?;
        let mut socket = WebSocketStream::server(stream, Config::default());
        while let Some(message) = socket.next().await {
            match message? {
                message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok(())
    })
}
