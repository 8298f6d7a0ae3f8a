//! Merging of several nodes' answers into one.
use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::{exec::Answer, table};

/// Merge answers: JSON as an array, tables as a table, else lines after their node.
pub fn merge(answers: &[Answer]) -> Result<String> {
    let said: Vec<(&str, &str)> = answers
        .iter()
        .filter(|answer| !answer.output.trim().is_empty())
        .map(|answer| (answer.node.as_str(), answer.output.as_str()))
        .collect();
    if said.is_empty() {
        return Ok(String::new());
    }
    if let Some(text) = json(&said)? {
        return Ok(text);
    }
    if let Some(text) = table::merge(&said) {
        return Ok(text);
    }
    let width = said.iter().map(|(node, _)| node.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (node, output) in said {
        for part in output.lines() {
            writeln!(text, "{}", line(node, width, part))?;
        }
    }
    Ok(text)
}

/// Add the node to a line: as a field of a JSON object, otherwise as a prefix.
pub fn line(node: &str, width: usize, line: &str) -> String {
    match serde_json::from_str(line) {
        Ok(Value::Object(object)) => with_node(node, object).to_string(),
        _ => format!("{node:width$}  {line}").trim_end().to_owned(),
    }
}

fn with_node(node: &str, object: Map<String, Value>) -> Value {
    let first = (String::from("node"), Value::from(node));
    Value::Object(std::iter::once(first).chain(object).collect())
}

/// Merge JSON into one array, of all elements or of the nodes' objects.
/// Lines of JSON stay lines. `None`: not JSON.
fn json(said: &[(&str, &str)]) -> Result<Option<String>> {
    let mut all = Vec::new();
    let mut lines = false;
    for (node, output) in said {
        if !output.starts_with(['[', '{']) {
            return Ok(None);
        }
        let documents: Result<Vec<Value>, _> =
            serde_json::Deserializer::from_str(output).into_iter().collect();
        let documents = documents.with_context(|| format!("{node} answered with broken JSON"))?;
        lines |= documents.len() > 1;
        for document in documents {
            let elements = match document {
                Value::Array(elements) => elements,
                other => vec![other],
            };
            all.extend(elements.into_iter().map(|element| match element {
                Value::Object(object) => with_node(node, object),
                other => with_node(node, [(String::from("value"), other)].into_iter().collect()),
            }));
        }
    }
    if lines {
        return Ok(Some(all.iter().map(|value| format!("{value}\n")).collect()));
    }
    Ok(Some(serde_json::to_string_pretty(&all)? + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(texts: &[(&str, &str)]) -> Vec<Answer> {
        let answer = |(node, output): &(&str, &str)| Answer {
            node: (*node).into(),
            output: (*output).into(),
            error: String::new(),
            code: 0,
        };
        texts.iter().map(answer).collect()
    }

    #[test]
    fn arrays_become_one_and_each_element_has_its_node() {
        let merged = merge(&answers(&[
            ("n1", "[{\"source\": \"a\"}]"),
            ("n2", "[]"),
            ("n3", "[{\"source\": \"b\"}]"),
        ]));
        let merged: Value = serde_json::from_str(&merged.expect("merged")).expect("JSON");
        let expected =
            serde_json::json!([{"node": "n1", "source": "a"}, {"node": "n3", "source": "b"}]);
        assert_eq!(merged, expected);
    }

    #[test]
    fn objects_become_an_array() {
        let merged =
            merge(&answers(&[("n1", "{\"pid\": 1}"), ("n2", "{\"pid\": 2}")])).expect("merged");
        let merged: Value = serde_json::from_str(&merged).expect("JSON");
        assert_eq!(merged[1], serde_json::json!({"node": "n2", "pid": 2}));
    }

    #[test]
    fn lines_of_json_stay_lines() {
        let merged = merge(&answers(&[("n1", "{\"id\":1}\n{\"id\":2}\n"), ("n2", "{\"id\":1}\n")]));
        let merged = merged.expect("merged");
        assert_eq!(merged.lines().count(), 3, "{merged}");
        assert!(merged.lines().all(|line| line.contains("\"node\":\"n")), "{merged}");
    }

    #[test]
    fn broken_json_names_the_node() {
        let error = merge(&answers(&[("n1", "[{\"a\": ")])).expect_err("it is broken");
        assert!(format!("{error:#}").contains("n1"), "{error:#}");
    }

    #[test]
    fn other_text_has_the_node_before_each_line() {
        let merged = merge(&answers(&[("n1", "version  0.1.0\n"), ("node2", "done\n")]));
        assert_eq!(merged.expect("merged"), "n1     version  0.1.0\nnode2  done\n");
    }
}
