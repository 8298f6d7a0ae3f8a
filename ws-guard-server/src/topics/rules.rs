//! What topics are, by patterns of their names.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A topic's name, or the beginning of many with a `*` at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// Read a pattern.
    ///
    /// # Errors
    /// Where it is empty, or has a `*` elsewhere.
    pub fn new(text: &str) -> Result<Pattern, String> {
        let name = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty() || name.contains('*') {
            let remedy = "write a name, or its beginning and a * at the end";
            return Err(format!("{text:?} is no pattern of topics: {remedy}"));
        }
        Ok(Pattern(text.into()))
    }

    /// Whether it is that of this topic.
    pub fn matches(&self, topic: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => topic.starts_with(beginning),
            None => topic == &*self.0,
        }
    }
}

/// How much of a topic's past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub messages: usize,
    pub bytes: usize,
    pub age: Duration,
}

/// How the entries of a queue topic are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queueing {
    /// Entries that may wait to be acknowledged; more are refused.
    pub entries: usize,
    /// Unacknowledged entries of one connection.
    pub prefetch: usize,
    /// Time for the acknowledgement before another subscriber gets the entry.
    pub ack_timeout: Duration,
    /// Deliveries of an entry before it is a dead letter.
    pub max_deliveries: u32,
}

/// To whom a topic's publications go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// To each subscriber, live.
    Live,
    /// To each subscriber, also to one that comes back.
    History(History),
    /// Each to one subscriber, which acknowledges it.
    Queue(Queueing),
}

/// What holds for the topics that a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub pattern: Pattern,
    pub kind: Kind,
    /// Only clients whose token grants it may publish or subscribe.
    pub restricted: bool,
}

impl Rule {
    pub fn history(&self) -> Option<&History> {
        match &self.kind {
            Kind::History(history) => Some(history),
            _ => None,
        }
    }

    pub fn queueing(&self) -> Option<&Queueing> {
        match &self.kind {
            Kind::Queue(queueing) => Some(queueing),
            _ => None,
        }
    }
}

/// Some rules; the first that matches applies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules(pub Vec<Arc<Rule>>);

impl Rules {
    pub fn of(&self, topic: &str) -> Option<&Arc<Rule>> {
        self.0.iter().find(|rule| rule.pattern.matches(topic))
    }
}

/// Why rules cannot be put in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    #[error("server.topic: queue topics are in Redis: start the server with --bus")]
    NoBus,
    #[error(
        "server.topic: {0} is in use, and what it has is not for another kind: a topic becomes a queue, \
         or is one no more, under another name"
    )]
    OtherKind(Arc<str>),
}

/// Topics that there are, for which other rules may hold from now on.
pub trait Ruled: Send + Sync {
    /// Whether they can go on under these.
    ///
    /// # Errors
    /// Where they cannot.
    fn check(&self, rules: &Rules) -> Result<(), RulesError>;

    /// Other rules are in force.
    fn changed(&self);
}

/// The rules in force, which may change while the server runs.
#[derive(Default)]
pub struct InForce {
    rules: RwLock<Arc<Rules>>,
    ruled: Mutex<Option<Weak<dyn Ruled>>>,
}

impl std::fmt::Debug for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.rules().fmt(f)
    }
}

impl InForce {
    /// These at first.
    pub fn new(rules: Rules) -> Arc<InForce> {
        Arc::new(InForce { rules: RwLock::new(Arc::new(rules)), ..InForce::default() })
    }

    pub fn rules(&self) -> Arc<Rules> {
        // A panic while it was held left all rules or none of the new ones.
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tell these topics of changes.
    pub fn tell(&self, ruled: Weak<dyn Ruled>) {
        *self.ruled.lock().unwrap_or_else(PoisonError::into_inner) = Some(ruled);
    }

    fn ruled(&self) -> Option<Arc<dyn Ruled>> {
        let ruled = self.ruled.lock().unwrap_or_else(PoisonError::into_inner);
        ruled.as_ref().and_then(Weak::upgrade)
    }

    /// Whether rules could be put in force.
    ///
    /// # Errors
    /// Where topics that there are cannot go on.
    pub fn check(&self, rules: &Rules) -> Result<(), RulesError> {
        self.ruled().map_or(Ok(()), |ruled| ruled.check(rules))
    }

    /// Put rules in force.
    ///
    /// # Errors
    /// As [`InForce::check`]; then the old ones stay in force.
    pub fn set(&self, rules: Rules) -> Result<(), RulesError> {
        if *self.rules() == rules {
            return Ok(());
        }
        self.check(&rules)?;
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        if let Some(ruled) = self.ruled() {
            ruled.changed();
        }
        Ok(())
    }
}

/// What a client's token permits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Grants {
    pub publish: Option<Vec<Pattern>>,
    pub subscribe: Option<Vec<Pattern>>,
}

impl Grants {
    /// Nothing is said, so that rules decide.
    pub fn is_empty(&self) -> bool {
        self.publish.is_none() && self.subscribe.is_none()
    }
}

/// Whether these patterns permit a topic. Without any, all are permitted that are not restricted.
pub fn permits(granted: Option<&[Pattern]>, topic: &str, restricted: bool) -> bool {
    match granted {
        Some(patterns) => patterns.iter().any(|pattern| pattern.matches(topic)),
        None => !restricted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_or_their_beginnings() {
        let matches = |pattern: &str, topic: &str| Pattern::new(pattern).unwrap().matches(topic);
        assert!(matches("chat:*", "chat:1") && matches("chat:*", "chat:") && matches("*", "x"));
        assert!(!matches("chat:*", "chat") && !matches("chat", "chat:1") && matches("a", "a"));
        assert!(Pattern::new("").is_err() && Pattern::new("a*b").is_err());
    }

    #[test]
    fn grants_decide_and_restricted_topics_need_one() {
        let granted = [Pattern::new("chat:*").unwrap()];
        assert!(permits(Some(&granted), "chat:1", true) && !permits(Some(&granted), "x", false));
        assert!(permits(None, "x", false) && !permits(None, "x", true));
        assert!(!permits(Some(&[]), "x", false));
    }
}
