//! Hides what looks like a secret in a command line, before it leaves its node.
//!
//! A command line is a text of words; what is hidden stands as [`HIDDEN`]. Names are matched without
//! regard to case. What no rule knows stays as it is: this is a table of habits, not a proof.

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// Endings of the names of options and variables whose value is a secret.
const SECRET_NAMES: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "access_key",
    "private-key",
];

/// The command line without its secrets; `None` where it has none.
pub fn redact(command_line: &str) -> Option<String> {
    let mut changed = false;
    let mut hide_next = false;
    let words: Vec<String> = command_line
        .split(' ')
        .map(|word| {
            let hidden = if std::mem::take(&mut hide_next) && !word.is_empty() {
                Some(HIDDEN.to_owned())
            } else {
                redact_word(word)
            };
            hide_next = hidden.is_none() && announces_secret(word);
            changed |= hidden.is_some();
            hidden.unwrap_or_else(|| word.to_owned())
        })
        .collect();
    changed.then(|| words.join(" "))
}

/// `--password=x`, `PASSWORD=x`, `https://user:x@host`.
fn redact_word(word: &str) -> Option<String> {
    if let Some((name, value)) = word.split_once('=')
        && is_secret_name(name)
        && !value.is_empty()
    {
        return Some(format!("{name}={HIDDEN}"));
    }
    let (scheme, rest) = word.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let (name, _) = user.split_once(':')?;
    let after = &rest[user.len()..];
    Some(format!("{scheme}://{name}:{HIDDEN}{after}"))
}

/// `--password x`, `Authorization: Bearer x`.
fn announces_secret(word: &str) -> bool {
    let is_option = word.starts_with('-') && !word.contains('=');
    (is_option && is_secret_name(word)) || word.eq_ignore_ascii_case("bearer")
}

fn is_secret_name(name: &str) -> bool {
    let name = name.trim_start_matches('-').to_ascii_lowercase();
    SECRET_NAMES.iter().any(|secret| name.ends_with(secret))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_stays() {
        for (line, redacted) in [
            (
                "mysql --password=hunter2 -u root",
                "mysql --password=*** -u root",
            ),
            ("app --token abc --port 1", "app --token *** --port 1"),
            ("env PGPASSWORD=x psql", "env PGPASSWORD=*** psql"),
            (
                "curl https://me:secret@host/path",
                "curl https://me:***@host/path",
            ),
            (
                "curl -H Authorization: Bearer abc.def",
                "curl -H Authorization: Bearer ***",
            ),
            (
                "x --db-password a --secret b",
                "x --db-password *** --secret ***",
            ),
        ] {
            assert_eq!(redact(line).as_deref(), Some(redacted));
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for line in [
            "sleep infinity",
            "kubelet --token-file /x --tls-private-key-file=/y",
            "git clone https://host/a@b",
            "ssh user@host",
            "app --password= --port 1",
            "",
        ] {
            assert_eq!(redact(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn a_redacted_line_has_nothing_more_to_hide(line in ".{0,200}") {
            let once = redact(&line).unwrap_or(line);
            prop_assert_eq!(redact(&once).unwrap_or_else(|| once.clone()), once);
        }
    }
}
