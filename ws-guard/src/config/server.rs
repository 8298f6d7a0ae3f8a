//! Section `server` of the configuration file.
//! It holds the companion server's subprotocols, and what else may change with open connections.

use std::{ops::Range, path::Path, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    file::{self, SECTION},
    problem::{ConfigError, Place, Problem},
    run::RUN,
    topics,
};
use ws_guard_server::{
    negotiation::{Features, Row, Share, Table, offers::is_token, share::PARTS},
    output_limit,
    topics::rules::{Rule, Rules},
};

use crate::domain::policy::POLICY;

/// Key of a row, in messages.
const ROW: &str = "server.protocol";
/// Key of a topic's row, in messages.
const TOPIC: &str = "server.topic";
/// Permitted keys of a row, in messages.
const FIELDS: &str = "give offer, answer, features, percent or user-id-below";
/// Maximum rows of a table; each protocol has time series of its own.
const MOST_ROWS: usize = 64;

/// Content of the section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSection {
    pub protocols: Table,
    /// Bytes that may be pending for a client that does not read.
    pub max_output: Option<u32>,
    /// Rules of topics: history or queue.
    pub topics: Rules,
}

/// Row as written, as far as it could be read.
#[derive(Default)]
struct Written {
    offer: Option<Names>,
    answer: Option<String>,
    features: Option<Vec<Feature>>,
    percent: Option<f64>,
    user_id_below: Option<u8>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Feature {
    Compression,
    Encryption,
    ClientCertificate,
    Streaming,
}

impl ServerSection {
    /// Read the section of a file that may also hold settings of `run`.
    ///
    /// # Errors
    /// Every error in the section, unknown keys included.
    pub fn load(path: &Path) -> Result<ServerSection, ConfigError> {
        let text = file::read(path).map_err(|problem| ConfigError(vec![problem]))?;
        let known: Vec<&str> =
            POLICY.iter().map(|s| s.name).chain(RUN.iter().map(|s| s.name)).collect();
        let mut problems = file::parse(path, &text, &known).problems;
        let section = ServerSection::parse(path, &text, &mut problems);
        if problems.is_empty() { Ok(section) } else { Err(ConfigError(problems)) }
    }

    /// Parse the section in a file's text; add problems to `problems`.
    pub fn parse(path: &Path, text: &str, problems: &mut Vec<Problem>) -> ServerSection {
        let mut reading = Reading { path, text, problems };
        // Invalid TOML is reported by the reader of the rest of the file.
        let Ok(whole) = DeTable::parse(text) else { return ServerSection::default() };
        let found = whole.into_inner().into_iter().find(|(key, _)| key.get_ref() == SECTION);
        let Some((_, section)) = found else { return ServerSection::default() };
        let section = reading.section(section);
        file::in_order(problems);
        section
    }
}

/// Reader of the section and its problems.
struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Reading<'_> {
    fn problem(&mut self, key: &str, span: Range<usize>, message: String) {
        let line = file::line(self.text, span.start);
        let place = Place::File { path: self.path.to_owned(), line, key: key.into() };
        self.problems.push(Problem { place, message });
    }

    /// Parse a value, or add its problem.
    fn value<T: DeserializeOwned>(&mut self, key: &str, value: Spanned<DeValue<'_>>) -> Option<T> {
        let span = value.span();
        let read = T::deserialize(ValueDeserializer::from(value));
        let wrong = |error: toml::de::Error| {
            let span = error.span().unwrap_or(span);
            self.problem(key, span, format!("{}: correct it", error.message()));
        };
        read.map_err(wrong).ok()
    }

    fn section(&mut self, section: Spanned<DeValue<'_>>) -> ServerSection {
        let mut read = ServerSection::default();
        let span = section.span();
        let DeValue::Table(table) = section.into_inner() else {
            self.problem(SECTION, span, "a table is required: write [server]".into());
            return read;
        };
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "protocol" => read.protocols = Table { rows: self.rows(value) },
                "max-output" => read.max_output = self.max_output(value),
                "topic" => read.topics = Rules(self.topics(value)),
                other => {
                    let message =
                        format!("unknown field `{other}`: give protocol, topic or max-output");
                    self.problem(SECTION, key.span(), message);
                }
            }
        }
        read
    }

    fn max_output(&mut self, value: Spanned<DeValue<'_>>) -> Option<u32> {
        let (key, span) = ("server.max-output", value.span());
        let checked = output(self.value(key, value)?);
        checked.map_err(|message| self.problem(key, span, message)).ok()
    }

    fn topics(&mut self, value: Spanned<DeValue<'_>>) -> Vec<Arc<Rule>> {
        let span = value.span();
        let DeValue::Array(written) = value.into_inner() else {
            self.problem(TOPIC, span, "rows are required: write [[server.topic]]".into());
            return Vec::new();
        };
        let rows = written.into_iter().filter_map(|row| {
            let span = row.span();
            let checked = topics::check(&self.value(TOPIC, row)?);
            checked.map_err(|message| self.problem(TOPIC, span, message)).ok()
        });
        rows.collect()
    }

    fn rows(&mut self, value: Spanned<DeValue<'_>>) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let span = value.span();
        let DeValue::Array(written) = value.into_inner() else {
            self.problem(ROW, span, "rows are required: write [[server.protocol]]".into());
            return rows;
        };
        for written in written {
            let span = written.span();
            match self.row(written) {
                Some(row) if rows.iter().any(|other| same(other, &row)) => {
                    let message = format!("{} for the same offer is there twice", row.answer);
                    self.problem(ROW, span, format!("{message}: keep one of them"));
                }
                Some(_) if rows.len() >= MOST_ROWS => {
                    let message = format!("there are more than {MOST_ROWS} of them: give fewer");
                    self.problem(ROW, span, message);
                    break;
                }
                Some(row) => rows.push(row),
                None => {}
            }
        }
        rows
    }

    /// Parse a row, or add all of its problems, each with its line.
    fn row(&mut self, row: Spanned<DeValue<'_>>) -> Option<Row> {
        let span = row.span();
        let before = self.problems.len();
        let DeValue::Table(table) = row.into_inner() else {
            self.problem(ROW, span, "a table is required: write [[server.protocol]]".into());
            return None;
        };
        let mut written = Written::default();
        let mut places = Vec::new();
        for (key, value) in table {
            let name = key.get_ref().to_string();
            places.push((name.clone(), value.span()));
            match &*name {
                "offer" => written.offer = self.value(ROW, value),
                "answer" => written.answer = self.value(ROW, value),
                "features" => written.features = self.value(ROW, value),
                "percent" => written.percent = self.value(ROW, value),
                "user-id-below" => written.user_id_below = self.value(ROW, value),
                _ => self.problem(ROW, key.span(), format!("unknown field `{name}`: {FIELDS}")),
            }
        }
        let given = |key: &str| places.iter().find(|(name, _)| name == key);
        if given("offer").is_none() {
            self.problem(ROW, span.clone(), "missing field `offer`: add it".into());
        }
        if self.problems.len() > before && written.offer.is_none() {
            return None;
        }
        match check(written) {
            Ok(row) => (self.problems.len() == before).then_some(row),
            Err(errors) => {
                for (key, message) in errors {
                    let place = given(key).map_or(span.clone(), |(_, place)| place.clone());
                    self.problem(ROW, place, format!("{key}: {message}"));
                }
                None
            }
        }
    }
}

/// Check an output limit; the error describes the problem.
fn output(bytes: i64) -> Result<u32, String> {
    let range = output_limit::RANGE;
    let known = u32::try_from(bytes).ok().filter(|bytes| range.contains(bytes));
    known.ok_or_else(|| {
        format!("{bytes} bytes are not from {} to {}: correct it", range.start(), range.end())
    })
}

fn same(one: &Row, other: &Row) -> bool {
    let all = |one: &Row, other: &Row| one.offer.iter().all(|name| other.offer.contains(name));
    one.answer == other.answer && all(one, other) && all(other, one)
}

/// Check a row; the error holds its problems by key.
fn check(written: Written) -> Result<Row, Vec<(&'static str, String)>> {
    let mut wrong = Vec::new();
    let mut offer = match written.offer {
        Some(Names::One(name)) => vec![name],
        Some(Names::Several(names)) => names,
        None => Vec::new(),
    };
    if let Some(name) = offer.iter().find(|name| !is_token(name)) {
        let rule = "use letters, digits and !#$%&'*+-.^_`|~";
        wrong.push(("offer", format!("{name:?} is no name of a protocol: {rule}")));
    }
    let answer = answer(written.answer, &offer).map_err(|error| wrong.push(error));
    let features = features(&written.features.unwrap_or_default());
    let features = features.map_err(|error| wrong.push(("features", error)));
    let share = share(written.percent, written.user_id_below).map_err(|error| wrong.push(error));
    let (Ok(answer), Ok(features), Ok(share), true) = (answer, features, share, wrong.is_empty())
    else {
        return Err(wrong);
    };
    offer.sort();
    offer.dedup();
    let offer = offer.into_iter().map(String::into_boxed_str).collect();
    Ok(Row { offer, answer: answer.into(), features, share })
}

fn answer(written: Option<String>, offer: &[String]) -> Result<String, (&'static str, String)> {
    match (written, offer) {
        (Some(answer), names) if names.contains(&answer) => Ok(answer),
        (None, [only]) => Ok(only.clone()),
        (_, []) => Err(("offer", "it is empty: name at least one protocol".into())),
        (Some(answer), names) => {
            let remedy = format!("name one of {}", names.join(", "));
            Err(("answer", format!("{answer:?} is not among what the client offers: {remedy}")))
        }
        (None, names) => Err(("answer", format!("missing: choose one of {}", names.join(", ")))),
    }
}

fn features(list: &[Feature]) -> Result<Features, String> {
    let has = |feature| list.contains(&feature);
    let features = Features {
        compression: has(Feature::Compression),
        encryption: has(Feature::Encryption),
        client_certificate: has(Feature::ClientCertificate),
        streaming: has(Feature::Streaming),
    };
    if features.streaming && (features.compression || features.encryption) {
        return Err(
            "streaming goes with neither compression nor encryption, which are of whole messages: leave one of them out"
                .into(),
        );
    }
    Ok(features)
}

fn share(percent: Option<f64>, below: Option<u8>) -> Result<Share, (&'static str, String)> {
    match (percent, below) {
        (None, None) => Ok(Share::ALL),
        (Some(percent), None) if (0.0..=100.0).contains(&percent) => {
            Ok(Share::Parts((percent / 100.0 * PARTS as f64).round() as u16))
        }
        (Some(percent), None) => Err(("percent", format!("{percent} is not from 0 to 100"))),
        (None, Some(bound)) if bound <= 100 => Ok(Share::UserIdBelow(bound)),
        (None, Some(bound)) => Err(("user-id-below", format!("{bound} is not from 0 to 100"))),
        (Some(_), Some(_)) => {
            Err(("percent", "user-id-below is given too: keep one of them".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ws_guard_server::negotiation::{Choice, Client};

    fn parsed(text: &str) -> Result<ServerSection, Vec<String>> {
        let mut problems = Vec::new();
        let section = ServerSection::parse(Path::new("/etc/g.toml"), text, &mut problems);
        let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
        if lines.is_empty() { Ok(section) } else { Err(lines) }
    }

    fn seed() -> Table {
        parsed(include_str!("../../../docs/examples/rollout.toml")).unwrap().protocols
    }

    fn chosen(table: &Table, offered: &[&str], user: &str) -> Option<Choice> {
        table.choose(offered, &Client { user: Some(user), ..Client::default() })
    }

    /// Apply the seed's table to 100,000 users.
    /// Each share is within the bounds of chance, and has the same users each time.
    #[test]
    fn the_seeds_table_over_a_hundred_thousand_users() {
        const USERS: usize = 100_000;
        let (table, again) = (seed(), seed());
        let users: Vec<String> = (0..USERS).map(|n| n.to_string()).collect();
        let share = |offered: &[&str], protocol: &str| {
            let gets = |user: &&String| {
                let choice = chosen(&table, offered, user);
                assert_eq!(choice, chosen(&again, offered, user), "{user} both times");
                choice.is_some_and(|choice| *choice.protocol == *protocol)
            };
            users.iter().filter(gets).count()
        };
        let all: &[&str] = &["v2+compression", "v3+encryption"];
        assert_eq!(share(&["v2+compression"], "v2+compression"), USERS);
        for (offered, protocol, expected) in [
            (&["v3+encryption"][..], "v3+encryption", 0.15),
            (all, "v3+encryption", 0.05),
            (all, "v2+compression", 0.95),
        ] {
            let mean = expected * USERS as f64;
            // Five standard deviations of a binomial distribution.
            let most = 5.0 * (mean * (1.0 - expected)).sqrt();
            let found = share(offered, protocol) as f64;
            println!("{protocol} of {offered:?}: {found} of {USERS}");
            assert!((found - mean).abs() < most, "{offered:?}: {found} are {protocol}");
        }
        // The share of the remainder is exact.
        assert_eq!(share(&["v4+streaming"], "v4+streaming"), USERS / 50);
        assert!(chosen(&table, &["v4+streaming"], "201").is_some());
        assert!(chosen(&table, &["v4+streaming"], "202").is_none());
    }

    #[test]
    fn topics_have_histories_or_are_queues() {
        let rows = "[[server.topic]]\nmatch = \"chat:*\"\nhistory = 1000\nttl = \"5m\"\n\
                    [[server.topic]]\nmatch = \"jobs\"\nkind = \"queue\"\nprefetch = 4\n";
        let rules = parsed(rows).unwrap().topics;
        let history = rules.of("chat:1").unwrap().history().copied().unwrap();
        assert_eq!((history.messages, history.age.as_secs()), (1000, 300));
        assert_eq!(rules.of("jobs").unwrap().queueing().unwrap().prefetch, 4);
        assert_eq!(rules.of("else"), None);
        for (row, wanted) in [
            ("history = 1000", "missing field `match`"),
            ("match = \"a*b\"", "is no pattern of topics"),
            ("match = \"a\"\nttl = \"5m\"", "add history"),
            ("match = \"a\"\nhistory = 1\nttl = \"soon\"", "ttl: "),
            ("match = \"a\"\nkind = \"queue\"\nhistory = 1", "a queue has no history"),
            ("match = \"a\"\nprefetch = 1", "prefetch is for queues"),
            ("match = \"a\"\nmore = 1", "unknown field `more`"),
        ] {
            let errors = parsed(&format!("[[server.topic]]\n{row}\n")).unwrap_err();
            assert!(errors[0].contains(wanted), "{errors:?}");
        }
    }

    #[test]
    fn the_seeds_features() {
        let table = seed();
        let features = |offered: &[&str]| {
            let users = (0..1000).map(|n| n.to_string());
            let choice = users
                .filter_map(|user| chosen(&table, offered, &user))
                .find(|choice| offered.len() == 1 || *choice.protocol == *"v3+encryption");
            choice.unwrap().features
        };
        let compression = Features { compression: true, ..Features::default() };
        let encryption =
            Features { encryption: true, client_certificate: true, ..Features::default() };
        assert_eq!(features(&["v2+compression"]), compression);
        assert_eq!(features(&["v3+encryption"]), encryption);
        let all = Features { compression: true, ..encryption };
        assert_eq!(features(&["v2+compression", "v3+encryption"]), all);
        assert!(features(&["v4+streaming"]).streaming);
    }

    #[test]
    fn errors_name_line_value_and_remedy() {
        for (row, expected) in [
            ("offer = []", "offer: it is empty"),
            ("offer = \"a b\"", "\"a b\" is no name"),
            ("offer = [\"a\", \"b\"]", "choose one of a, b"),
            ("offer = \"a\"\nanswer = \"c\"", "name one of a"),
            ("offer = \"a\"\npercent = 100.5", "100.5 is not from 0 to 100"),
            ("offer = \"a\"\npercent = nan", "NaN is not from 0 to 100"),
            ("offer = \"a\"\nuser-id-below = 101", "101 is not from 0 to 100"),
            ("offer = \"a\"\npercent = 1\nuser-id-below = 1", "keep one of them"),
            ("offer = \"a\"\nfeatures = [\"zip\"]", "unknown variant `zip`"),
            ("offer = \"a\"\nfeatures = [\"streaming\", \"encryption\"]", "leave one of them out"),
            ("offer = \"a\"\nshare = 3", "unknown field `share`"),
            ("answer = \"a\"", "missing field `offer`"),
        ] {
            let text = format!("port = 80\n\n[[server.protocol]]\n{row}\n");
            let errors = parsed(&text).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
            let place = errors[0].strip_prefix("/etc/g.toml:").unwrap();
            let line: usize = place.split(':').next().unwrap().parse().unwrap();
            assert!((3..=6).contains(&line), "{errors:?}");
            assert!(errors[0].contains(expected), "{row}: {errors:?}");
        }
        for bytes in ["4095", "16777217", "-1"] {
            let errors = parsed(&format!("[server]\nmax-output = {bytes}\n")).unwrap_err();
            let expected = "/etc/g.toml:2: server.max-output: ";
            assert!(errors[0].starts_with(expected) && errors[0].contains(bytes), "{errors:?}");
        }
        let twice = "[[server.protocol]]\noffer = [\"a\", \"b\"]\nanswer = \"a\"\n\
            [[server.protocol]]\noffer = [\"b\", \"a\"]\nanswer = \"a\"\npercent = 3\n";
        let errors = parsed(twice).unwrap_err();
        assert!(
            errors[0].starts_with("/etc/g.toml:4: ") && errors[0].contains("twice"),
            "{errors:?}"
        );
        let many = "[[server.protocol]]\noffer = \"aN\"\n";
        let many: String = (0..70).map(|n| many.replace('N', &n.to_string())).collect();
        assert!(parsed(&many).unwrap_err()[0].contains("more than 64"));
    }

    #[test]
    fn all_errors_of_a_row_have_their_own_lines() {
        let text = "[server]\nmax-output = \"x\"\nport = 1\n[[server.protocol]]\noffer = \"a b\"\n\
            features = [\"zip\"]\npercent = 101\nshare = 1\n[[server.protocol]]\nuser-id-below = 300\n";
        let errors = parsed(text).unwrap_err();
        let lines: Vec<&str> = errors
            .iter()
            .map(|line| line.strip_prefix("/etc/g.toml:").unwrap().split(':').next().unwrap())
            .collect();
        assert_eq!(lines.len(), 8, "{errors:#?}");
        for line in ["2", "3", "5", "6", "7", "8", "9", "10"] {
            assert!(lines.contains(&line), "{line}: {errors:#?}");
        }
        let hex = parsed("[[server.protocol]]\noffer = \"a\"\nuser-id-below = 0x10\n").unwrap();
        assert_eq!(hex.protocols.rows[0].share, Share::UserIdBelow(16));
    }

    #[test]
    fn a_file_may_have_other_settings_and_no_strange_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("g.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ServerSection::load(&path).map_err(|error| error.lines().join("\n"))
        };
        let section = "port = 80\n[[server.protocol]]\noffer = \"v2\"\npercent = 12.5\n";
        let rows = load(section).unwrap().protocols.rows;
        assert_eq!((rows.len(), rows[0].share), (1, Share::Parts(1250)));
        assert_eq!(load("port = 80\n").unwrap(), ServerSection::default());
        assert_eq!(load("[server]\nmax-output = 65536\n").unwrap().max_output, Some(65_536));
        assert!(load("[sever]\n").unwrap_err().contains("did you mean server?"));
        assert!(load("[server]\nprotocols = []\n").unwrap_err().contains("unknown field"));
        assert!(load("server = 3\n").unwrap_err().contains("g.toml:1: server"));
        let broken = load("[[server.protocol]\n").unwrap_err();
        assert!(broken.contains(":1: ") && broken.lines().count() == 1, "{broken}");
        std::fs::remove_file(&path).unwrap();
        assert!(ServerSection::load(&path).unwrap_err().to_string().contains("cannot be read"));
    }
}
