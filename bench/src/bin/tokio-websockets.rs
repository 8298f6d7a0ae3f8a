//! Echo on tokio-websockets.
use anyhow::Result;
use futures_util::{SinkExt, StreamExt};

fn main() -> Result<()> {
    ws_guard_bench::run(async |stream| {
        let (_, mut socket) = tokio_websockets::ServerBuilder::new().accept(stream).await?;
        while let Some(message) = socket.next().await {
            let message = message?;
            if message.is_text() || message.is_binary() {
                socket.send(message).await?;
            }
        }
        Ok(())
    })
}
