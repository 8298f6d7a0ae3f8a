//! Running server: its threads, its start and its end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
};

use prometheus::Registry;
use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, watch},
};

use super::{
    access_log::AccessLog,
    config::{Config, HandlerKind},
    listen,
    memory_budget::MemoryBudget,
    metrics::Metrics,
    service::{Ask, Service},
    shard::Shard,
    topics::{
        TopicLimits, Topics, bus::Bus, exchange::Exchange, local_bus::LocalBus, redis::RedisBus,
        resume::ResumeKey,
    },
};

/// Maximum number of queries that wait for a thread.
const ASKS: usize = 16;

/// Reason why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    #[error("cannot start a thread for connections: {0}")]
    Thread(io::Error),
    #[error("cannot make a key for resume tokens: {0}")]
    Randomness(String),
    #[error("cannot start the bus between servers: {0}")]
    Bus(String),
    #[error("cannot register the server's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Running server, on its own threads.
pub struct Server {
    service: Arc<Service>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    shards: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listen, and serve until [`Server::stop`]; the metrics go to `registry`.
    pub fn start(
        config: Config,
        access_log: AccessLog,
        registry: &Registry,
    ) -> Result<Server, StartError> {
        let listeners = listeners(&config)?;
        Server::start_with(listeners, config, access_log, registry)
    }

    /// Start with topics whose publications use the bus that `connect` makes.
    pub fn start_on(
        connect: impl FnOnce(Arc<Exchange>) -> Arc<dyn Bus>,
        config: Config,
        access_log: AccessLog,
        registry: &Registry,
    ) -> Result<Server, StartError> {
        let connect = |exchange| Ok(connect(exchange));
        Server::start_all(listeners(&config)?, connect, config, access_log, registry)
    }

    /// Serve on sockets that listen already, one for each thread.
    pub fn start_with(
        listeners: Vec<TcpListener>,
        config: Config,
        access_log: AccessLog,
        registry: &Registry,
    ) -> Result<Server, StartError> {
        let settings = match &config.handler {
            HandlerKind::Topic(limits) => limits.bus.clone(),
            HandlerKind::Echo => None,
        };
        let connect = |exchange| match settings {
            None => Ok(LocalBus::connect(exchange)),
            Some(settings) => RedisBus::connect(exchange, settings, registry)
                .map_err(|error| StartError::Bus(error.to_string())),
        };
        Server::start_all(listeners, connect, config, access_log, registry)
    }

    fn start_all(
        listeners: Vec<TcpListener>,
        connect: impl FnOnce(Arc<Exchange>) -> Result<Arc<dyn Bus>, StartError>,
        config: Config,
        access_log: AccessLog,
        registry: &Registry,
    ) -> Result<Server, StartError> {
        let metrics = Metrics::new(registry)?;
        access_log.register(registry)?;
        let held = MemoryBudget::new(metrics.buffered.clone());
        let topics = match &config.handler {
            HandlerKind::Echo => None,
            HandlerKind::Topic(limits) => {
                let (limits, held) = (TopicLimits::clone(limits), held.clone());
                let resume = ResumeKey::random(ResumeKey::LIFETIME)
                    .map_err(|error| StartError::Randomness(error.to_string()))?;
                Some(Topics::new(limits, resume, registry, held, connect)?)
            }
        };
        metrics.ping_interval.set(config.heartbeat.ping_interval.as_secs_f64());
        let address = match listeners.first().map(TcpListener::local_addr) {
            Some(Ok(address)) => address,
            _ => config.listen,
        };
        let (asks, asked): (Vec<_>, Vec<_>) = listeners.iter().map(|_| mpsc::channel(ASKS)).unzip();
        let service = Arc::new(Service::new(config, metrics, access_log, topics, held, asks));
        let (stop, stopped) = watch::channel(false);
        let mut server = Server { service, address, stop, shards: Vec::new() };
        for (listener, asked) in listeners.into_iter().zip(asked) {
            // If this fails, the running ones end with the server.
            let shard = spawn(server.service.clone(), listener, asked, stopped.clone());
            server.shards.push(shard.map_err(StartError::Thread)?);
        }
        Ok(server)
    }

    /// Return the listening address; the port is known even if it was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Stop accepting, close all connections with 1012, and wait for their ends.
    /// That takes at most a little longer than [`Config::drain_timeout`]. Blocks.
    pub fn stop(mut self) {
        self.tell();
        for shard in self.shards.drain(..) {
            if shard.join().is_err() {
                tracing::error!("a thread of the server panicked");
            }
        }
    }

    fn tell(&self) {
        self.service.set_stopping();
        self.stop.send_replace(true);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tell();
    }
}

fn listeners(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    let listening = listen::for_shards(config.listen, config.shards);
    listening.map_err(|error| StartError::Listen(config.listen, error))
}

/// Start a thread with its own runtime: a connection never changes threads.
fn spawn(
    service: Arc<Service>,
    listener: TcpListener,
    asked: mpsc::Receiver<Ask>,
    stop: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("ws-shard".into()).spawn(move || {
        let (runtime, listener) = match runtime(listener) {
            Ok(begun) => begun,
            Err(error) => return drop(ready.send(Err(error))),
        };
        // The starting thread waits for this.
        let _ = ready.send(Ok(()));
        runtime.block_on(Shard::run(service, listener, asked, stop));
    })?;
    // Not a runtime's channel: this may itself be on one, and it does not take long.
    let lost = |_| Err(io::Error::other("it ended before it began"));
    started.recv().unwrap_or_else(lost)?;
    Ok(thread)
}

/// Create this thread's runtime, and the listener on it.
fn runtime(listener: TcpListener) -> io::Result<(LocalRuntime, tokio::net::TcpListener)> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    drop(entered);
    Ok((runtime, listener))
}
