//! A setting: its name, what it is for, and how its text becomes a value. Flags, environment, file
//! and API all go through the same table, so that each says the same about a bad value.

use super::address::Quoted;

/// One setting of a `T`.
pub struct Setting<T> {
    /// The flag without its dashes, and the key in the file.
    pub name: &'static str,
    /// Placeholder of the value in help texts; empty for a switch.
    pub value: &'static str,
    pub help: &'static str,
    /// A list: may be given several times, or with commas.
    pub many: bool,
    /// The variable of older days that also sets it, behind `WS_GUARD_…`.
    pub seed: Option<&'static str>,
    /// Set from text; a list's grows by one. The error says what is wrong and what would be right.
    pub set: fn(&mut T, &str) -> Result<(), String>,
    /// The value as texts that `set` takes: one, or as many as the list has.
    pub get: fn(&T) -> Vec<String>,
    /// Empty the list.
    pub clear: fn(&mut T),
}

impl<T> Setting<T> {
    /// Name in JSON, and in the environment behind `WS_GUARD_` in capitals.
    pub fn json_name(&self) -> String {
        let name = self.name.replace('-', "_");
        match name.strip_suffix('y') {
            // Reads the same for one and for several.
            _ if !self.many || name.ends_with("_from") => name,
            Some(stem) => format!("{stem}ies"),
            None => name + "s",
        }
    }

    pub fn variable(&self) -> String {
        format!("WS_GUARD_{}", self.name.replace('-', "_").to_uppercase())
    }

    /// Replace the value by `texts`; all of them are tried, and every error is returned with the
    /// index of its text.
    pub fn replace<S: AsRef<str>>(&self, target: &mut T, texts: &[S]) -> Vec<(usize, String)> {
        if self.many {
            (self.clear)(target);
        }
        let set = |(i, text): (usize, &S)| (self.set)(target, text.as_ref()).err().map(|e| (i, e));
        texts.iter().enumerate().filter_map(set).collect()
    }

    /// Copy the value from one `T` to another.
    pub fn copy(&self, from: &T, to: &mut T) {
        // What `get` gives, `set` takes.
        self.replace(to, &(self.get)(from));
    }
}

/// Store a parsed value, or hand its error on.
pub fn store<V>(place: &mut V, value: Result<V, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

/// A whole number from `min` to `max`.
pub fn whole<V: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Result<V, String> {
    let refuse =
        |what: &str| format!("{} {what}: give a whole number from {min} to {max}", Quoted(text));
    let text_digits = text.trim();
    if text_digits.is_empty() || !text_digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse("is not a whole number"));
    }
    // Digits alone fail to parse only when there are too many of them.
    let number = text_digits.parse::<u64>().unwrap_or(u64::MAX);
    if !(min..=max).contains(&number) {
        return Err(refuse("is out of range"));
    }
    V::try_from(number).map_err(|_| refuse("is out of range"))
}

/// One of a few words.
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

/// The most likely candidate for a mistyped word.
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
