//! Label selectors as kubectl writes them:
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>.

use std::collections::BTreeMap;

/// One requirement; all of a selector's hold.
#[derive(Debug, PartialEq, Eq)]
enum Requirement {
    /// The label is there.
    Exists(String),
    /// The label is not there.
    Missing(String),
    /// It is there and one of these.
    In(String, Vec<String>),
    /// It is none of these, or not there.
    NotIn(String, Vec<String>),
}

/// Which labels are wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

impl Selector {
    /// Reads `a=b,c!=d,e,!f,g in (h,i),j notin (k)`; an error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for part in split(text)? {
            requirements.push(requirement(part.trim())?);
        }
        Ok(Self(requirements))
    }

    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Missing(key) => !labels.contains_key(key),
            Requirement::In(key, values) => {
                labels.get(key).is_some_and(|value| values.contains(value))
            }
            Requirement::NotIn(key, values) => {
                labels.get(key).is_none_or(|value| !values.contains(value))
            }
        })
    }
}

/// At commas that are in no parentheses.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut begin, mut open) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' if !open => open = true,
            ')' if open => open = false,
            '(' | ')' => return Err(format!("the parentheses of {text:?} do not match")),
            ',' if !open => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if open {
        return Err(format!("the parentheses of {text:?} do not match"));
    }
    parts.push(&text[begin..]);
    Ok(parts)
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let key = |key: &str| {
        let key = key.trim();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if key.is_empty() || !key.chars().all(fits) {
            return Err(format!("{key:?} is no label's name"));
        }
        Ok(key.to_owned())
    };
    if let Some((name, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let values = values
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        let name = name.trim_end();
        if let Some(name) = name.strip_suffix(" notin") {
            return Ok(Requirement::NotIn(key(name)?, values));
        }
        let name = name
            .strip_suffix(" in")
            .ok_or_else(|| format!("{text:?} is no requirement"))?;
        return Ok(Requirement::In(key(name)?, values));
    }
    let one = |value: &str| vec![value.trim_start_matches('=').trim().to_owned()];
    if let Some((name, value)) = text.split_once("!=") {
        return Ok(Requirement::NotIn(key(name)?, one(value)));
    }
    if let Some((name, value)) = text.split_once('=') {
        return Ok(Requirement::In(key(name)?, one(value)));
    }
    match text.strip_prefix('!') {
        Some(name) => Ok(Requirement::Missing(key(name)?)),
        None => Ok(Requirement::Exists(key(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_those_of_kubectl() {
        let labels = [("app", "web"), ("tier", "front"), ("example.com/x", "")];
        let labels = labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (text, matches) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=web,tier=back", false),
            ("app!=web", false),
            ("other!=web", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app in (api, web),tier", true),
            ("app in (api)", false),
            ("app notin (api,db)", true),
            ("other notin (x)", true),
            ("example.com/x=", true),
        ] {
            let selector = Selector::parse(text).expect(text);
            assert_eq!(selector.matches(&labels), matches, "{text}");
        }
        for text in [
            "",
            "a=b,",
            "a in (b",
            "a in b)",
            "=x",
            "a b",
            "a within (x)",
            "((a))",
        ] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
