//! Selection of interfaces by name or by pattern, and their roles.
use std::fmt;

use glob::Pattern;

use super::{interfaces::check_name, role::Role};

/// Characters that make a name a pattern, as in glob(7).
const WILDCARDS: [char; 3] = ['*', '?', '['];

/// Name of an interface, or pattern of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    Name(String),
    /// Glob (glob(7)): `*`, `?`, `[a-z]`, `[!a-z]`; bracketed wildcards are literal.
    Pattern(Pattern),
}

impl Selector {
    /// # Errors
    /// The problem of the text, and the remedy.
    pub fn parse(text: &str) -> Result<Selector, String> {
        if !text.contains(WILDCARDS) {
            check_name(text).map_err(|error| error.to_string())?;
            return Ok(Selector::Name(text.into()));
        }
        if text.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
            return Err(format!(
                "{text:?} matches no interface: names hold no slash, colon or white space"
            ));
        }
        Pattern::new(text).map(Selector::Pattern).map_err(|error| {
            format!(
                "{text:?} is not a pattern ({}): use * and ? and [a-z], and [*] for a real *",
                error.msg
            )
        })
    }

    fn matches(&self, interface: &str) -> bool {
        match self {
            Selector::Name(name) => name == interface,
            Selector::Pattern(pattern) => pattern.matches(interface),
        }
    }

    const fn is_name(&self) -> bool {
        matches!(self, Selector::Name(_))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Name(name) => f.write_str(name),
            Selector::Pattern(pattern) => f.write_str(pattern.as_str()),
        }
    }
}

/// All wanted interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Values of `--interface`.
    pub uplinks: Vec<Selector>,
    /// Values of `--pod-interface`.
    pub pods: Vec<Selector>,
}

impl Selection {
    /// Return the role in which an interface is wanted, if it is.
    /// A name prevails over a pattern, and a pattern of pods over one of uplinks.
    pub fn role(&self, interface: &str) -> Option<Role> {
        let found =
            self.all().find(|(selector, _)| selector.is_name() && selector.matches(interface));
        let found =
            found.or_else(|| self.patterns().find(|(selector, _)| selector.matches(interface)));
        found.map(|(_, role)| role)
    }

    /// Return the interfaces that are wanted by name.
    pub fn names(&self) -> impl Iterator<Item = (&str, Role)> {
        self.all().filter_map(|(selector, role)| match selector {
            Selector::Name(name) => Some((name.as_str(), role)),
            Selector::Pattern(_) => None,
        })
    }

    /// Return the patterns, those of pods first.
    pub fn patterns(&self) -> impl Iterator<Item = (&Selector, Role)> {
        let mut patterns: Vec<_> = self.all().filter(|(selector, _)| !selector.is_name()).collect();
        patterns.sort_by_key(|(_, role)| *role != Role::Pod);
        patterns.into_iter()
    }

    /// Check whether an interface may be wanted in a role.
    pub fn wants(&self, wanted: Role) -> bool {
        self.all().any(|(_, role)| role == wanted)
    }

    /// Count a pattern's `interfaces`, without those of names and earlier patterns.
    pub fn taken<'a>(
        &self,
        pattern: &Selector,
        role: Role,
        interfaces: impl Iterator<Item = &'a str>,
    ) -> usize {
        let named = |interface: &str| self.names().any(|(name, _)| name == interface);
        interfaces
            .filter(|name| pattern.matches(name) && !named(name) && self.role(name) == Some(role))
            .count()
    }

    /// Return names that are wanted in both roles.
    pub fn contradictions(&self) -> Vec<String> {
        let names = self.pods.iter().filter(|pod| pod.is_name() && self.uplinks.contains(pod));
        names.map(Selector::to_string).collect()
    }

    fn all(&self) -> impl Iterator<Item = (&Selector, Role)> {
        let of = |role| move |selector| (selector, role);
        let pods = self.pods.iter().map(of(Role::Pod));
        self.uplinks.iter().map(of(Role::Uplink)).chain(pods)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(uplinks: &[&str], pods: &[&str]) -> Selection {
        let parse = |texts: &[&str]| texts.iter().map(|t| Selector::parse(t).unwrap()).collect();
        Selection { uplinks: parse(uplinks), pods: parse(pods) }
    }

    #[test]
    fn names_beat_patterns_and_pods_beat_uplinks() {
        let wanted = selection(&["e*", "cali9", "eth0"], &["cali*", "eth1"]);
        for (interface, role) in [
            ("eth0", Some(Role::Uplink)),
            ("eth1", Some(Role::Pod)),
            ("ens3", Some(Role::Uplink)),
            ("cali0", Some(Role::Pod)),
            ("cali9", Some(Role::Uplink)),
            ("lo", None),
            ("xcali0", None),
        ] {
            assert_eq!(wanted.role(interface), role, "{interface}");
        }
        assert_eq!(selection(&["*"], &["cali*"]).role("cali0"), Some(Role::Pod));
        assert_eq!(
            wanted.names().map(|(name, _)| name).collect::<Vec<_>>(),
            ["cali9", "eth0", "eth1"]
        );
    }

    #[test]
    fn a_pattern_is_said_to_have_what_no_name_took() {
        let wanted = selection(&["*", "cali9"], &["cali*"]);
        let interfaces = ["lo", "eth0", "cali0", "cali1", "cali9"];
        let taken: Vec<(String, usize)> = wanted
            .patterns()
            .map(|(p, role)| (p.to_string(), wanted.taken(p, role, interfaces.into_iter())))
            .collect();
        assert_eq!(taken, [("cali*".into(), 2), ("*".into(), 2)]);
    }

    #[test]
    fn wildcards_stand_for_themselves_in_brackets() {
        let wanted = selection(&[], &["a[*]b", "veth[[]0]", "p?d", "n[!0-4]"]);
        for (interface, matches) in [
            ("a*b", true),
            ("axb", false),
            ("veth[0]", true),
            ("veth0", false),
            ("pod", true),
            ("pd", false),
            ("n7", true),
            ("n3", false),
        ] {
            assert_eq!(wanted.role(interface).is_some(), matches, "{interface}");
        }
    }

    #[test]
    fn what_can_match_nothing_is_refused() {
        for text in ["", "a/b", "cali*/", "a b*", "cali[", "a:*", "ca**li", "much-too-long-a-name"]
        {
            assert!(Selector::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(selection(&["a", "b*"], &["b*", "a"]).contradictions(), ["a"]);
    }
}
