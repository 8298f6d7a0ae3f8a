//! The client that a limit applies to.

use super::{Address, Policy, SourceKey};

/// Origin of a flow's client: [`Client::identity`].
pub mod identity {
    /// The peer itself.
    pub const PEER: u8 = 0;
    /// A header of the upgrade request, written by a trusted proxy.
    pub const FORWARDED: u8 = 1;
    /// The PROXY protocol.
    pub const PROXY_PROTOCOL: u8 = 2;
    /// The connection alone: a trusted proxy's information is not usable.
    pub const CONNECTION: u8 = 3;

    /// The name in JSON.
    pub const fn name(identity: u8) -> &'static str {
        match identity {
            PEER => "peer",
            FORWARDED => "forwarded",
            PROXY_PROTOCOL => "proxy-protocol",
            _ => "connection",
        }
    }
}

/// The client of a connection: the peer, or the address that a trusted proxy vouches for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Client {
    pub address: Address,
    /// The peer's port in network byte order, where the client is one connection; otherwise 0.
    pub port: u16,
    /// One of [`identity`].
    pub identity: u8,
    pub _pad: u8,
}

/// A client and its source, determined once, when the connection opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Account {
    pub client: Client,
    /// Key of the client's source, by the policy's prefix length at that time.
    pub source: SourceKey,
}

impl Account {
    #[inline(always)]
    pub fn of(client: Client, policy: &Policy) -> Account {
        Account { client, source: client.source(policy) }
    }
}

impl Client {
    #[inline(always)]
    pub const fn of(address: &Address, identity: u8) -> Client {
        Client { address: *address, port: 0, identity, _pad: 0 }
    }

    /// The peer itself.
    #[inline(always)]
    pub const fn of_peer(peer: &Address) -> Client {
        Self::of(peer, identity::PEER)
    }

    /// One connection of the peer, charged to nothing else.
    #[inline(always)]
    pub const fn of_connection(peer: &Address, port: u16) -> Client {
        Client { address: *peer, port, identity: identity::CONNECTION, _pad: 0 }
    }

    /// The key of its source. One connection is a source of its own, by its whole address.
    #[inline(always)]
    pub fn source(&self, policy: &Policy) -> SourceKey {
        if self.port != 0 {
            let scope = SourceKey::of_connection(policy.scope, self.port);
            return SourceKey { address: self.address, scope };
        }
        let mask = if self.address.is_v4() { &policy.mask_v4 } else { &policy.mask_v6 };
        SourceKey { address: self.address.masked(mask), scope: policy.scope }
    }
}
