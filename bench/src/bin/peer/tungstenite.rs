//! tokio-tungstenite.

use anyhow::Result;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

pub async fn serve(stream: TcpStream) -> Result<()> {
    let socket = tokio_tungstenite::accept_async(stream).await?;
    crate::batch::echo(socket, |message: &Message| message.is_text() || message.is_binary()).await
}
