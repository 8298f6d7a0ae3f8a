//! Setting: name, purpose, and parsing of its text.
//! Flags, environment, file and API use the same table, and so report bad values alike.

use super::address::Quoted;

/// Setting of a `T`.
pub struct Setting<T> {
    /// Flag without its dashes, and key in the file.
    pub name: &'static str,
    /// Placeholder of the value in help texts; empty for a switch.
    pub value: &'static str,
    pub help: &'static str,
    /// Set for a list, which may be given several times, or with commas.
    pub many: bool,
    /// Older variable that also sets it, overridden by `WS_GUARD_…`.
    pub seed: Option<&'static str>,
    /// Parse a text; a list grows by one. The error contains problem and remedy.
    pub set: fn(&mut T, &str) -> Result<(), String>,
    /// Return the value as texts for `set`: one, or as many as the list has.
    pub get: fn(&T) -> Vec<String>,
    /// Empty the list.
    pub clear: fn(&mut T),
}

impl<T> Setting<T> {
    /// Return the name in JSON, and in capitals after `WS_GUARD_` in the environment.
    pub fn json_name(&self) -> String {
        let name = self.name.replace('-', "_");
        match name.strip_suffix('y') {
            // Same form in singular and plural.
            _ if !self.many || name.ends_with("_from") => name,
            Some(stem) => format!("{stem}ies"),
            None => name + "s",
        }
    }

    pub fn variable(&self) -> String {
        format!("WS_GUARD_{}", self.name.replace('-', "_").to_uppercase())
    }

    /// Replace the value by `texts`.
    /// All of them are tried, and every error is returned with the index of its text.
    pub fn replace<S: AsRef<str>>(&self, target: &mut T, texts: &[S]) -> Vec<(usize, String)> {
        if self.many {
            (self.clear)(target);
        }
        let set = |(i, text): (usize, &S)| (self.set)(target, text.as_ref()).err().map(|e| (i, e));
        texts.iter().enumerate().filter_map(set).collect()
    }

    /// Copy the value from one `T` to another.
    pub fn copy(&self, from: &T, to: &mut T) {
        // `set` accepts what `get` returns.
        self.replace(to, &(self.get)(from));
    }
}

/// Store a parsed value, or return its error.
pub fn store<V>(place: &mut V, value: Result<V, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

/// Parse a whole number from `min` to `max`.
pub fn whole<V: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Result<V, String> {
    let refuse =
        |what: &str| format!("{} {what}: give a whole number from {min} to {max}", Quoted(text));
    let text_digits = text.trim();
    if text_digits.is_empty() || !text_digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse("is not a whole number"));
    }
    // Digits alone fail to parse only if there are too many of them.
    let number = text_digits.parse::<u64>().unwrap_or(u64::MAX);
    if !(min..=max).contains(&number) {
        return Err(refuse("is out of range"));
    }
    V::try_from(number).map_err(|_| refuse("is out of range"))
}

/// Parse one of several words.
pub fn word<V: Copy>(text: &str, words: &[(&str, V)]) -> Result<V, String> {
    let wanted = text.trim();
    if let Some((_, value)) = words.iter().find(|(name, _)| *name == wanted) {
        return Ok(*value);
    }
    let all: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let hint =
        closest(wanted, &all).map_or(String::new(), |name| format!("; did you mean {name}?"));
    Err(format!("{} is unknown: give one of {}{hint}", Quoted(text), all.join(", ")))
}

/// Return the most likely candidate for a mistyped word.
pub fn closest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    const ALIKE: f64 = 0.75;
    let scored = candidates.iter().map(|name| (strsim::jaro_winkler(word, name), *name));
    scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, n)| n)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_name_themselves_and_their_range() {
        assert_eq!(whole::<u32>("30", 1, 100), Ok(30));
        assert_eq!(
            whole::<u32>("-3", 1, 100).unwrap_err(),
            r#""-3" is not a whole number: give a whole number from 1 to 100"#
        );
        assert!(whole::<u32>("101", 1, 100).unwrap_err().contains("out of range"));
        assert!(whole::<u32>("99999999999999999999999", 1, 100).unwrap_err().contains("range"));
        assert!(whole::<u8>("", 0, 32).is_err());
    }

    #[test]
    fn words_are_guessed() {
        let words = [("observe", 0), ("defuse", 1), ("drop", 2)];
        assert_eq!(word("drop", &words), Ok(2));
        assert!(word("defuze", &words).unwrap_err().ends_with("did you mean defuse?"));
        assert!(!word("xyz", &words).unwrap_err().contains("did you mean"));
    }

    proptest! {
        #[test]
        fn whole_takes_exactly_its_range(number in 0u64..200) {
            prop_assert_eq!(whole::<u64>(&number.to_string(), 10, 100).is_ok(), (10..=100).contains(&number));
        }

        #[test]
        fn whole_never_panics(text in ".*") {
            let _ = whole::<u8>(&text, 0, 255);
        }
    }
}
