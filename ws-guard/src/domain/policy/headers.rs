//! Headers in which a trusted proxy names the client.

use hyper::header::HeaderName;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use ws_guard_common::forwarded::names::{
    FORWARDED, HEADERS, HeaderNames, LONGEST_NAME, X_FORWARDED_FOR,
};

use crate::domain::address::Quoted;

/// At most [`HEADERS`] names in lower case, each of at most [`LONGEST_NAME`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFrom(Vec<String>);

impl Default for ClientFrom {
    fn default() -> ClientFrom {
        ClientFrom(vec![FORWARDED.into(), X_FORWARDED_FOR.into()])
    }
}

impl ClientFrom {
    pub fn texts(&self) -> Vec<String> {
        self.0.clone()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Add a header.
    ///
    /// # Errors
    /// The problem of the name, and the remedy; then nothing has changed.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let refuse = |what: &str| {
            format!("{} {what}: give the name of a header, such as x-real-ip", Quoted(text))
        };
        let name = text.trim().parse::<HeaderName>().map_err(|_| refuse("is no header"))?;
        if name.as_str().len() > LONGEST_NAME {
            return Err(refuse(&format!("is longer than {LONGEST_NAME} bytes")));
        }
        if self.0.iter().any(|known| known == name.as_str()) {
            return Ok(());
        }
        if self.0.len() == HEADERS {
            return Err(format!(
                "{} is one too many: at most {HEADERS} headers are read",
                Quoted(text)
            ));
        }
        self.0.push(name.as_str().into());
        Ok(())
    }

    pub fn to_kernel(&self) -> HeaderNames {
        let mut names = HeaderNames::default();
        for (at, name) in self.0.iter().enumerate() {
            names.set(at, name);
        }
        names
    }

    pub fn from_kernel(names: &HeaderNames) -> ClientFrom {
        ClientFrom(names.texts())
    }
}

impl Serialize for ClientFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ClientFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ClientFrom, D::Error> {
        let mut names = ClientFrom(Vec::new());
        for text in Vec::<String>::deserialize(deserializer)? {
            names.add(&text).map_err(D::Error::custom)?;
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(texts: &[&str]) -> Result<ClientFrom, String> {
        let mut names = ClientFrom(Vec::new());
        texts.iter().try_for_each(|text| names.add(text)).map(|()| names)
    }

    #[test]
    fn names_go_to_the_kernel_and_back() {
        for names in [ClientFrom::default(), of(&["X-Real-IP"]).unwrap(), of(&[]).unwrap()] {
            assert_eq!(ClientFrom::from_kernel(&names.to_kernel()), names);
        }
        assert_eq!(of(&["X-Real-IP", " x-real-ip"]).unwrap().texts(), ["x-real-ip"]);
        assert_eq!(ClientFrom::default().to_kernel(), HeaderNames::usual());
    }

    #[test]
    fn what_is_no_header_is_refused_with_a_remedy() {
        for bad in ["", "a b", "x:y", "é"] {
            let error = of(&[bad]).unwrap_err();
            assert!(error.contains("such as x-real-ip"), "{error}");
        }
        assert!(of(&["a123456789012345678901234567890123"]).unwrap_err().contains("32 bytes"));
        assert!(of(&["a", "b", "c"]).unwrap_err().contains("one too many"));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(texts in proptest::collection::vec("[a-zA-Z0-9_ .:-]{0,40}", 0..4)) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            if let Ok(names) = of(&texts) {
                prop_assert_eq!(ClientFrom::from_kernel(&names.to_kernel()), names);
            }
        }
    }
}
