//! Echo through a `Stream` and `Sink`, flushed once for all messages that came together: the
//! quickest form for libraries that have these.

use anyhow::Result;
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};

pub async fn echo<S, M, E>(mut socket: S, is_data: fn(&M) -> bool) -> Result<()>
where
    S: Stream<Item = Result<M, E>> + Sink<M, Error = E> + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    while let Some(message) = socket.next().await {
        let mut next = Some(message);
        while let Some(message) = next {
            let message = message?;
            if is_data(&message) {
                socket.feed(message).await?;
            }
            next = socket.next().now_or_never().flatten();
        }
        socket.flush().await?;
    }
    Ok(())
}
