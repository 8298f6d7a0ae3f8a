//! sockudo-ws.

use anyhow::Result;
use sockudo_ws::{Config, Message, WebSocketStream, handshake::server_handshake};
use tokio::net::TcpStream;

pub async fn serve(mut stream: TcpStream) -> Result<()> {
    server_handshake(&mut stream).await?;
    let socket = WebSocketStream::server(stream, Config::default());
    let is_data = |message: &Message| matches!(message, Message::Text(_) | Message::Binary(_));
    crate::batch::echo(socket, is_data).await
}
