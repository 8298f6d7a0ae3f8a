//! Names of keys, groups and consumers.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// What would end a hash tag, or be taken for an encoding.
const OUTSIDE: &AsciiSet = &CONTROLS.add(b'{').add(b'}').add(b'%');

/// The keys of one topic, all in the same slot of a Redis Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The publications.
    pub stream: String,
    /// The consumer group of a queue topic.
    pub group: String,
    /// How far each server has read.
    pub delivered: String,
    /// Entries that were delivered too often.
    pub dead: String,
    /// Where the keys of publications begin.
    keys: String,
    /// Where channels of servers begin.
    present: String,
}

impl Keys {
    pub fn of(cluster: &str, topic: &str) -> Keys {
        let topic = utf8_percent_encode(topic, OUTSIDE);
        let key = |what: &str| format!("cluster:{cluster}:ws:{what}:{{{topic}}}");
        Keys {
            stream: key("topic"),
            group: format!("cluster:{cluster}:ws:topic:{topic}"),
            delivered: key("delivered"),
            dead: key("dead"),
            keys: key("key"),
            present: key("present") + ":",
        }
    }

    /// Where the position of the publication with this key is.
    pub fn key(&self, key: &str) -> String {
        format!("{}:{key}", self.keys)
    }

    /// The channel that a server follows as long as clients of its may have entries of a queue topic.
    pub fn present(&self, server: &str) -> String {
        format!("{}{server}", self.present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_the_hash_tag_whatever_it_is_called() {
        let keys = Keys::of("shanghai", "chat");
        assert_eq!(keys.stream, "cluster:shanghai:ws:topic:{chat}");
        assert_eq!(keys.group, "cluster:shanghai:ws:topic:chat");
        assert_eq!(keys.key("k"), "cluster:shanghai:ws:key:{chat}:k");
        assert_eq!(keys.present("a"), "cluster:shanghai:ws:present:{chat}:a");
        assert_eq!(Keys::of("c", "}{%").stream, "cluster:c:ws:topic:{%7D%7B%25}");
    }
}
