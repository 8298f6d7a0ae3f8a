//! Table of rollouts.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::Share;

/// Features of a protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// permessage-deflate if the client offers it and nothing encrypts, else Snappy.
    pub compression: bool,
    /// Encryption of messages with AES-GCM, under keys from a Noise handshake.
    pub encryption: bool,
    /// With TLS, restriction to clients that showed a certificate.
    pub client_certificate: bool,
    /// Delivery of fragments as they arrive.
    pub streaming: bool,
}

/// Row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Protocols that a client has to offer, all of them.
    pub offer: Vec<Box<str>>,
    /// Protocol chosen for it; one of those.
    pub answer: Arc<str>,
    pub features: Features,
    pub share: Share,
}

/// Properties of an offering client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client<'a> {
    pub user: Option<&'a str>,
    /// `true` on TLS.
    pub tls: bool,
    /// `true` if it showed a valid certificate.
    pub certified: bool,
}

/// Protocol chosen for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub protocol: Arc<str>,
    pub features: Features,
}

/// Rows in the server's order of preference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub rows: Vec<Row>,
}

impl Table {
    /// Choose the answer of the first row that fits a client with these offers.
    ///
    /// Of the rows with the same answer only the one that requires most of the client's offers
    /// counts: a share for clients that offer two protocols also determines which of them are not
    /// in it.
    pub fn choose(&self, offered: &[&str], client: &Client<'_>) -> Option<Choice> {
        let made = |row: &&Row| row.offer.iter().all(|wanted| offered.contains(&&**wanted));
        let fitting: Vec<&Row> = self.rows.iter().filter(made).collect();
        let closest = |row: &Row| {
            let rivals = fitting.iter().filter(|rival| rival.answer == row.answer);
            rivals.map(|rival| rival.offer.len()).max() == Some(row.offer.len())
        };
        let chosen = fitting.iter().find(|row| closest(row) && row.takes(client))?;
        Some(Choice { protocol: chosen.answer.clone(), features: chosen.features })
    }
}

impl Row {
    fn takes(&self, client: &Client<'_>) -> bool {
        let proven = !self.features.client_certificate || !client.tls || client.certified;
        proven && self.share.includes(&self.answer, client.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(offer: &[&str], answer: &str, share: Share) -> Row {
        let offer = offer.iter().map(|name| Box::from(*name)).collect();
        Row { offer, answer: answer.into(), features: Features::default(), share }
    }

    /// Build a table with 5 % of the clients that offer two protocols, 15 % of others.
    fn table() -> Table {
        Table {
            rows: vec![
                row(&["v3"], "v3", Share::Parts(1500)),
                row(&["v2", "v3"], "v3", Share::Parts(500)),
                row(&["v2"], "v2", Share::ALL),
            ],
        }
    }

    fn chosen(offered: &[&str], user: &str) -> Option<String> {
        let client = Client { user: Some(user), ..Client::default() };
        table().choose(offered, &client).map(|choice| choice.protocol.to_string())
    }

    #[test]
    fn the_row_that_asks_for_more_decides() {
        let users: Vec<String> = (0..2000).map(|n| n.to_string()).collect();
        for user in &users {
            let part = super::super::share::part("v3", user);
            let (both, alone) = (chosen(&["v2", "v3"], user), chosen(&["v3", "v9"], user));
            assert_eq!(both.as_deref(), Some(if part < 500 { "v3" } else { "v2" }));
            assert_eq!(alone.as_deref(), (part < 1500).then_some("v3"));
            assert_eq!(chosen(&["v2"], user).as_deref(), Some("v2"));
        }
    }

    #[test]
    fn who_offers_nothing_known_gets_nothing() {
        assert_eq!(chosen(&[], "1"), None);
        assert_eq!(chosen(&["v9", "V2"], "1"), None);
        assert_eq!(Table::default().choose(&["v2"], &Client::default()), None);
    }

    #[test]
    fn the_order_of_the_table_is_that_of_preference() {
        let (first, second) = (row(&["a"], "a", Share::ALL), row(&["b"], "b", Share::ALL));
        let table = Table { rows: vec![first, second] };
        let choice = table.choose(&["b", "a"], &Client::default()).unwrap();
        assert_eq!(&*choice.protocol, "a");
    }

    #[test]
    fn a_certificate_is_wanted_where_tls_is_on() {
        let features = Features { client_certificate: true, ..Features::default() };
        let table = Table { rows: vec![Row { features, ..row(&["v3"], "v3", Share::ALL) }] };
        for (tls, certified, taken) in
            [(false, false, true), (true, false, false), (true, true, true)]
        {
            let client = Client { user: None, tls, certified };
            assert_eq!(table.choose(&["v3"], &client).is_some(), taken, "{client:?}");
        }
    }
}
