//! Where Redis is: one server, the primary that Sentinels name, or the nodes of a Redis Cluster.

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisResult,
    TlsMode, Value,
    aio::MultiplexedConnection,
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};

use super::{
    link::{PATIENCE, connect, problem},
    slots::Slots,
};

/// What `--bus` names.
#[derive(Clone, Debug)]
pub enum Place {
    One(ConnectionInfo),
    /// The primary of this name.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        service: String,
        node: SentinelNodeConnectionInfo,
    },
    /// Some of the nodes, any of which knows all.
    Cluster(Vec<ConnectionInfo>),
}

/// The nodes that take writes, at this moment.
pub struct Primaries {
    pub nodes: Vec<Client>,
    /// Which of them has a key; without it, there is one for all.
    pub slots: Option<Slots>,
}

impl Place {
    /// Read a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(url: &str) -> Result<Place, String> {
        let (scheme, rest) = url.split_once("://").ok_or("it has no scheme")?;
        let (tls, kind) = match scheme.split_once('+') {
            Some((tls, kind)) => (tls, Some(kind)),
            None => (scheme, None),
        };
        if !matches!(tls, "redis" | "rediss") {
            return Err(format!("{scheme} is no scheme of Redis"));
        }
        let Some(kind) = kind else { return Ok(Place::One(pushing(info(url)?))) };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let all = |user: &str| -> Result<Vec<ConnectionInfo>, String> {
            hosts.split(',').map(|host| info(&format!("{tls}://{user}{host}/"))).collect()
        };
        match kind {
            "cluster" if path.is_empty() => Ok(Place::Cluster(all(&user)?)),
            "sentinel" if !path.is_empty() && !path.contains('/') => {
                let like = pushing(info(&format!("redis://{user}localhost/"))?);
                let mut node = SentinelNodeConnectionInfo::default()
                    .set_redis_connection_info(like.redis_settings().clone())
                    .set_tcp_settings(like.tcp_settings().clone());
                if tls == "rediss" {
                    node = node.set_tls_mode(TlsMode::Secure);
                }
                Ok(Place::Sentinel { sentinels: all("")?, service: path.into(), node })
            }
            "cluster" => Err("a Redis Cluster has no databases: remove the path".into()),
            "sentinel" => Err("the name of the primary is missing after the last address".into()),
            _ => Err(format!("{scheme} is no scheme of Redis")),
        }
    }

    /// Find who takes writes.
    pub async fn primaries(&self) -> RedisResult<Primaries> {
        match self {
            Place::One(info) => {
                let nodes = vec![Client::open(info.clone())?];
                Ok(Primaries { nodes, slots: None })
            }
            Place::Sentinel { sentinels, service, node } => {
                let mut sentinel = Sentinel::build(sentinels.clone())?;
                let found = sentinel.async_master_for(service, Some(node));
                let found = tokio::time::timeout(PATIENCE, found).await;
                let nodes = vec![found.map_err(|_| problem("no Sentinel answers"))??];
                Ok(Primaries { nodes, slots: None })
            }
            Place::Cluster(seeds) => {
                let mut failed = problem("no node of the cluster is named");
                for seed in seeds {
                    match members(seed).await {
                        Ok(primaries) => return Ok(primaries),
                        Err(error) => failed = error,
                    }
                }
                Err(failed)
            }
        }
    }
}

fn info(url: &str) -> Result<ConnectionInfo, String> {
    url.into_connection_info().map_err(|error| error.to_string())
}

/// The cluster as one of its nodes knows it.
async fn members(seed: &ConnectionInfo) -> RedisResult<Primaries> {
    let mut connection: MultiplexedConnection = connect(&Client::open(seed.clone())?).await?;
    let ranges: Vec<Vec<Value>> =
        redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
    let mut slots = Slots::default();
    let mut nodes: Vec<(String, u16)> = Vec::new();
    for range in ranges {
        let [first, last, primary, ..] = &range[..] else {
            return Err(problem("CLUSTER SLOTS says too little"));
        };
        let primary: Vec<Value> = redis::from_redis_value_ref(primary)?;
        let [host, port, ..] = &primary[..] else {
            return Err(problem("CLUSTER SLOTS names no address"));
        };
        let host: Option<String> = redis::from_redis_value_ref(host)?;
        // Unknown to itself: the address by which it was asked.
        let host = host.filter(|host| !host.is_empty() && host != "?");
        let at = (host.unwrap_or_else(|| host_of(seed)), redis::from_redis_value_ref(port)?);
        let index = nodes.iter().position(|node| *node == at).unwrap_or_else(|| {
            nodes.push(at);
            nodes.len() - 1
        });
        let [first, last] =
            [redis::from_redis_value_ref(first)?, redis::from_redis_value_ref(last)?];
        slots.set(first..=last, index);
    }
    if !slots.are_all_there() {
        return Err(problem("the cluster has slots without a node"));
    }
    let clients = nodes.into_iter().map(|(host, port)| Client::open(at(seed, host, port)));
    Ok(Primaries { nodes: clients.collect::<RedisResult<_>>()?, slots: Some(slots) })
}

fn host_of(info: &ConnectionInfo) -> String {
    match info.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
        _ => "localhost".into(),
    }
}

/// The same, with the protocol in which Redis pushes, and commands sent at once.
fn pushing(info: ConnectionInfo) -> ConnectionInfo {
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    info.set_redis_settings(redis).set_tcp_settings(tcp)
}

/// Another node, reached like this one.
fn at(like: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let addr = match like.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    pushing(like.clone().set_addr(addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_one_server_or_sentinels_or_nodes() {
        assert!(matches!(Place::read("redis://:pw@a:1/2"), Ok(Place::One(_))));
        let Ok(Place::Cluster(seeds)) = Place::read("rediss+cluster://u:p@a:1,b:2") else {
            panic!("no cluster")
        };
        assert_eq!(seeds.iter().map(host_of).collect::<Vec<_>>(), ["a", "b"]);
        assert!(matches!(seeds[1].addr(), ConnectionAddr::TcpTls { port: 2, .. }));
        assert_eq!(seeds[1].redis_settings().username(), Some("u"));
        let Ok(Place::Sentinel { sentinels, service, .. }) =
            Place::read("redis+sentinel://:p@a:26379,b:26379/main")
        else {
            panic!("no Sentinels")
        };
        // The password is the primary's.
        assert_eq!((sentinels.len(), &*service), (2, "main"));
        assert_eq!(sentinels[0].redis_settings().password(), None);
        for (url, wrong) in [
            ("localhost:1", "scheme"),
            ("http://a:1", "http is no scheme"),
            ("redis+ring://a:1", "redis+ring is no scheme"),
            ("redis+sentinel://a:1", "name of the primary"),
            ("redis+cluster://a:1/3", "no databases"),
        ] {
            let error = Place::read(url).unwrap_err();
            assert!(error.contains(wrong), "{url}: {error}");
        }
    }
}
