//! tokio-websockets.

use anyhow::Result;
use tokio::net::TcpStream;
use tokio_websockets::{Config, Limits, Message, ServerBuilder};

pub async fn serve(stream: TcpStream) -> Result<()> {
    // Frames as long as messages, as its benchmarks have it.
    let config = Config::default().frame_size(usize::MAX);
    let builder = ServerBuilder::new().config(config).limits(Limits::unlimited());
    let (_, socket) = builder.accept(stream).await?;
    crate::batch::echo(socket, |message: &Message| message.is_text() || message.is_binary()).await
}
