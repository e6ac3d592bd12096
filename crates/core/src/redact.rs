//! Hides what looks like a secret in a command line, before it leaves its node.
//!
//! A command line is a text of arguments; what is hidden stands as [`HIDDEN`]. Names are matched without
//! regard to case. What no rule knows stays as it is: this is a table of habits, not a proof.

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// Endings of the names of options, variables and fields whose value is a secret.
const SECRET_NAMES: [&str; 26] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "pass",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "access_key",
    "accesskey",
    "account-key",
    "accountkey",
    "auth-key",
    "authkey",
    "masterauth",
    "secret-key",
    "secret_key",
    "secretkey",
    "secret_key_base",
    "private-key",
    "private_key",
    "encryption-key",
    "encryption_key",
];
/// The same where it is the whole name or the last part of one.
const SECRET_PARTS: [&str; 3] = ["pw", "psk", "cookie"];
/// Words that end like one of these names and are none.
const NO_SECRETS: [&str; 6] = [
    "bypass",
    "compass",
    "encompass",
    "surpass",
    "overpass",
    "underpass",
];
/// How tokens begin whose maker has marked them so, and how many characters they have at least.
const MARKED: [(&str, usize); 23] = [
    ("AGE-SECRET-KEY-", 30),
    ("AKIA", 20),
    ("ASIA", 20),
    ("AIza", 35),
    ("SG.", 30),
    ("dop_v1_", 30),
    ("eyJ", 30),
    ("ghp_", 30),
    ("gho_", 30),
    ("ghs_", 30),
    ("ghu_", 30),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("hvs.", 20),
    ("npm_", 30),
    ("nsj_", 30),
    ("nst_", 30),
    ("pypi-", 30),
    ("sk-", 30),
    ("sk_live_", 20),
    ("tskey-", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
];
/// Options of well-known programs, or of a subcommand of several (`docker login`), whose value is a
/// secret.
const PROGRAMS: [(&[&str], &str, Value); 15] = [
    (
        &[
            "mysql",
            "mysqladmin",
            "mysqlcheck",
            "mysqldump",
            "mysqlimport",
            "mariadb",
            "mariadb-admin",
            "mariadb-check",
            "mariadb-dump",
        ],
        "-p",
        Value::Attached,
    ),
    (&["7z", "7za", "unrar", "rar"], "-p", Value::Attached),
    (&["sshpass"], "-p", Value::Both),
    (&["redis-cli", "valkey-cli"], "-a", Value::Next),
    (
        &["mongo", "mongosh", "mongodump", "mongorestore"],
        "-p",
        Value::Both,
    ),
    (&["login"], "-p", Value::Next),
    (
        &[
            "ldapsearch",
            "ldapmodify",
            "ldapadd",
            "ldapdelete",
            "ldapwhoami",
        ],
        "-w",
        Value::Both,
    ),
    (
        &[
            "sqlcmd",
            "bcp",
            "ipmitool",
            "mosquitto_pub",
            "mosquitto_sub",
            "zip",
            "unzip",
        ],
        "-P",
        Value::Both,
    ),
    (&["rabbitmqadmin"], "-p", Value::Next),
    (&["curl", "wget"], "-u", Value::Account),
    (&["curl"], "-U", Value::Account),
    (&["smbclient", "rpcclient", "net"], "-U", Value::Account),
    (&["curl", "smbclient", "etcdctl"], "--user", Value::Account),
    (&["curl"], "--proxy-user", Value::Account),
    (&["snmpwalk", "snmpget"], "-A", Value::Both),
];

/// How an option's value follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// In the next word.
    Next,
    /// In the same word.
    Attached,
    /// In either.
    Both,
    /// In either, and only what follows a user's name and a colon is secret.
    Account,
}

/// What becomes of the word after one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coming {
    Nothing,
    Secret,
    Account,
    /// The scheme of an authorization, and after it the secret.
    Scheme,
}

/// The command line for people: blanks between its arguments.
pub fn joined(command_line: &str) -> String {
    command_line.replace('\0', " ")
}

/// The command line without its secrets; `None` where it has none. Between two arguments stands a NUL,
/// as the kernel has it, or a blank, where nobody knows any more; a secret goes to the end of its
/// argument.
pub fn redact(command_line: &str) -> Option<String> {
    let is_separated = command_line.contains('\0');
    let mut text = String::with_capacity(command_line.len());
    let mut changed = false;
    let mut coming = Coming::Nothing;
    let mut program = "";
    let (mut begins_argument, mut is_in_secret) = (true, false);
    for piece in command_line.split_inclusive([' ', '\0']) {
        let word = piece.trim_end_matches([' ', '\0']);
        let separator = &piece[word.len()..];
        let ends_argument = separator == "\0";
        let begins = std::mem::replace(&mut begins_argument, ends_argument);
        if is_in_secret {
            is_in_secret = !ends_argument;
            text.push_str(if ends_argument { separator } else { "" });
            continue;
        }
        let before = std::mem::replace(&mut coming, Coming::Nothing);
        if word.is_empty() {
            // An argument that is empty is the value itself.
            if !(is_separated && begins && ends_argument) {
                coming = before;
            }
            text.push_str(separator);
            continue;
        }
        let hidden = match before {
            Coming::Account => account(word),
            Coming::Scheme if is_scheme(word) => {
                coming = Coming::Secret;
                text.push_str(piece);
                continue;
            }
            Coming::Secret | Coming::Scheme => Some(HIDDEN.to_owned()),
            Coming::Nothing => of_program(program, word).or_else(|| redact_word(word)),
        };
        if hidden.is_none() && before == Coming::Nothing {
            coming = announced(program, word);
        }
        if let Some(name) = known_program(word) {
            program = name;
        }
        changed |= hidden.is_some();
        text.push_str(hidden.as_deref().unwrap_or(word));
        let is_rest = hidden.is_some_and(|hidden| hidden.ends_with(HIDDEN));
        if is_separated && begins && !ends_argument && is_rest {
            is_in_secret = true;
        } else {
            text.push_str(separator);
        }
    }
    changed.then_some(text)
}

/// The name of a program that has options of its own, where a word is one, by whatever path.
fn known_program(word: &str) -> Option<&str> {
    let name = word.rsplit('/').next()?;
    let known = |(programs, _, _): &(&[&str], &str, Value)| programs.contains(&name);
    PROGRAMS.iter().any(known).then_some(name)
}

fn options_of(program: &str) -> impl Iterator<Item = (&'static str, Value)> {
    let of_it = move |(programs, _, _): &&(&[&str], &str, Value)| programs.contains(&program);
    PROGRAMS
        .iter()
        .filter(of_it)
        .map(|(_, option, value)| (*option, *value))
}

/// `mysql -pSECRET`, `curl -uuser:SECRET`.
fn of_program(program: &str, word: &str) -> Option<String> {
    options_of(program).find_map(|(option, value)| {
        let rest = word.strip_prefix(option).filter(|rest| !rest.is_empty())?;
        match value {
            Value::Attached | Value::Both => Some(format!("{option}{HIDDEN}")),
            Value::Account => Some(format!("{option}{}", account(rest)?)),
            Value::Next => None,
        }
    })
}

/// `user:SECRET`, `user%SECRET`.
fn account(word: &str) -> Option<String> {
    let at = word.find([':', '%'])?;
    let (user, secret) = word.split_at(at + 1);
    (!secret.is_empty()).then(|| format!("{user}{HIDDEN}"))
}

/// What a word says of the one after it: `--password x`, `Authorization: Bearer x`, `sshpass -p x`.
fn announced(program: &str, word: &str) -> Coming {
    let bare = word.trim_matches(['"', '\'']);
    let name = bare.trim_end_matches(':');
    if bare.ends_with(':') && name.to_ascii_lowercase().ends_with("authorization") {
        return Coming::Scheme;
    }
    let scheme = bare.rsplit(':').next().unwrap_or_default();
    let is_header = bare.to_ascii_lowercase().contains("authorization:");
    if name.eq_ignore_ascii_case("bearer") || (is_header && is_scheme(scheme)) {
        return Coming::Secret;
    }
    let is_option_of = |(option, value): &(&str, Value)| {
        // `curl -su me:x` too.
        let is_combined = *value == Value::Account
            && option.len() == 2
            && word.ends_with(&option[1..])
            && word.strip_prefix('-').is_some_and(|flags| {
                flags.len() > 1 && flags.chars().all(|flag| flag.is_ascii_alphabetic())
            });
        *option == word || is_combined
    };
    if let Some((_, value)) = options_of(program).find(is_option_of) {
        return match value {
            Value::Account => Coming::Account,
            Value::Next | Value::Both => Coming::Secret,
            Value::Attached => Coming::Nothing,
        };
    }
    let is_option = word.starts_with('-') && !word.contains('=');
    let is_field = bare.ends_with(':') && !bare.contains("://");
    if (is_option || is_field) && is_secret_name(name) {
        return Coming::Secret;
    }
    Coming::Nothing
}

fn is_scheme(word: &str) -> bool {
    ["basic", "bearer", "token", "digest"]
        .iter()
        .any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// What is secret in a word by itself: each rule sees what the ones before it left.
fn redact_word(word: &str) -> Option<String> {
    let mut text = word.to_owned();
    for rule in [fields, userinfo, account_at_host, marked] {
        if let Some(hidden) = rule(&text) {
            text = hidden;
        }
    }
    (text != word).then_some(text)
}

/// `--password=x`, `PASSWORD=x`, `"password":"x"`, `--env=PASSWORD=x`, `Server=a;Password=x`,
/// `https://host/?token=x&y=1`.
fn fields(word: &str) -> Option<String> {
    /// Between two fields of one word.
    const BETWEEN: [char; 7] = [';', '&', '?', ',', '{', '"', '\''];
    let mut text = String::new();
    // Where what is not copied yet begins, and where the name begins that a separator would end.
    let (mut copied, mut begin) = (0, 0);
    let mut after = None;
    for (at, character) in word.char_indices() {
        if at < begin {
            continue;
        }
        let is_separator = matches!(character, '=' | ':');
        if BETWEEN.contains(&character) && !(character == '"' && word[at + 1..].starts_with(':')) {
            (begin, after) = (at + 1, Some(character));
            continue;
        }
        if !is_separator {
            continue;
        }
        let (name, value) = (&word[begin..at], &word[at + 1..]);
        begin = at + 1;
        let is_query = matches!(after, Some('?' | '&'));
        let is_secret = is_secret_name(name) || (is_query && name == "sig");
        if !is_secret || value.is_empty() || value.starts_with("//") {
            continue;
        }
        // One of several fields ends where the next one begins; else all that follows is the value.
        let length = if after.is_some() {
            let body = value.trim_start_matches(['"', '\'']);
            let quotes = value.len() - body.len();
            quotes + body.find(BETWEEN).unwrap_or(body.len())
        } else {
            value.len()
        };
        if value[..length].trim_matches(['"', '\'']).is_empty() {
            continue;
        }
        text.push_str(&word[copied..=at]);
        text.push_str(HIDDEN);
        copied = at + 1 + length;
        begin = copied;
    }
    (copied > 0).then(|| {
        text.push_str(&word[copied..]);
        text
    })
}

/// `https://user:x@host`, wherever and however often, and `https://TOKEN@host`.
fn userinfo(word: &str) -> Option<String> {
    /// A user's name is shorter.
    const TOKEN: usize = 20;
    let mut text = String::new();
    let mut rest = word;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        text.push_str(before);
        rest = after;
        let authority = after.split(['/', '?', '#', ',']).next().unwrap_or_default();
        let Some((user, _)) = authority.rsplit_once('@') else {
            continue;
        };
        match user.split_once(':') {
            Some((name, secret)) if !secret.is_empty() => {
                text.push_str(name);
                text.push(':');
                text.push_str(HIDDEN);
            }
            None if user.len() >= TOKEN => text.push_str(HIDDEN),
            _ => continue,
        }
        rest = &after[user.len()..];
    }
    text.push_str(rest);
    (text != word).then_some(text)
}

/// `user:x@host` without a scheme.
fn account_at_host(word: &str) -> Option<String> {
    /// These name packages and places, and no user.
    const SCHEMES: [&str; 6] = ["npm", "jsr", "pkg", "git", "file", "sha256"];
    let (user, rest) = word.split_once(':')?;
    let (secret, host) = rest.rsplit_once('@')?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let is_account = !user.is_empty()
        && user.chars().all(is_plain)
        && !SCHEMES.contains(&user)
        && !secret.is_empty()
        && !secret.contains('/')
        && host.starts_with(|c: char| c.is_ascii_alphanumeric());
    is_account.then(|| format!("{user}:{HIDDEN}@{host}"))
}

/// Tokens that are known by how they begin, wherever in a word.
fn marked(word: &str) -> Option<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let mut text = String::new();
    let mut changed = false;
    let mut rest = word;
    while !rest.is_empty() {
        let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        let is_token =
            |(begin, least): &(&str, usize)| run.starts_with(begin) && run.len() >= *least;
        if MARKED.iter().any(is_token) {
            changed = true;
            text.push_str(HIDDEN);
        } else {
            text.push_str(run);
        }
        let next = after.chars().next().map_or(0, char::len_utf8);
        text.push_str(&after[..next]);
        rest = &after[next..];
    }
    changed.then_some(text)
}

fn is_secret_name(name: &str) -> bool {
    let name = name
        .trim_matches(['-', '"', '\'', '{'])
        .to_ascii_lowercase();
    let last = name.rsplit(['-', '_', '.']).next().unwrap_or_default();
    // A path is no name.
    !name.contains('/')
        && !NO_SECRETS.contains(&last)
        && (SECRET_PARTS.contains(&last)
            || SECRET_NAMES.iter().any(|secret| name.ends_with(secret)))
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
            ("mysql -uroot -phunter2 db", "mysql -uroot -p*** db"),
            ("/usr/bin/mysqldump -psecret", "/usr/bin/mysqldump -p***"),
            ("sshpass -p x ssh a@b", "sshpass -p *** ssh a@b"),
            ("sshpass -px ssh a@b", "sshpass -p*** ssh a@b"),
            ("redis-cli -h db -a x ping", "redis-cli -h db -a *** ping"),
            ("mongosh -u a -p x", "mongosh -u a -p ***"),
            ("docker login -u a -p x", "docker login -u a -p ***"),
            ("ldapsearch -D cn=a -w x", "ldapsearch -D cn=a -w ***"),
            ("curl -u me:x https://h", "curl -u me:*** https://h"),
            ("curl --user me:x https://h", "curl --user me:*** https://h"),
            (
                "smbclient --user me%x //h/s",
                "smbclient --user me%*** //h/s",
            ),
            ("openssl rsa -passin pass:x", "openssl rsa -passin pass:***"),
            (
                "curl -H Authorization: Basic bWU6eA== h",
                "curl -H Authorization: Basic *** h",
            ),
            (
                "curl -H Authorization: abc h",
                "curl -H Authorization: *** h",
            ),
            (
                "app Server=a;User=b;Password=c;Port=1",
                "app Server=a;User=b;Password=***;Port=1",
            ),
            ("app --password=a;b,c", "app --password=***"),
            (
                "curl https://h/?token=x&y=1",
                "curl https://h/?token=***&y=1",
            ),
            (
                "curl -d {\"user\":\"a\",\"password\":\"x\"}",
                "curl -d {\"user\":\"a\",\"password\":***\"}",
            ),
            ("aws AKIAIOSFODNN7EXAMPLE x", "aws *** x"),
            (
                "git clone ghp_abcdefghijklmnopqrstuvwxyz0123456789",
                "git clone ***",
            ),
            (
                "app eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefgh",
                "app ***",
            ),
            ("django SECRET_KEY=x", "django SECRET_KEY=***"),
            (
                "surreal start --user root --pass x",
                "surreal start --user root --pass ***",
            ),
            ("wpa --wifi-psk x", "wpa --wifi-psk ***"),
            (
                "app postgres://u:p@h/db?sslpassword=x&a=1",
                "app postgres://u:***@h/db?sslpassword=***&a=1",
            ),
            (
                "nats --routes=nats://u:p@a:1,nats://u:q@b:1",
                "nats --routes=nats://u:***@a:1,nats://u:***@b:1",
            ),
            (
                "etcd --endpoints=http://a:1,http://root:x@b:2",
                "etcd --endpoints=http://a:1,http://root:***@b:2",
            ),
            (
                "kubectl create secret generic x --from-literal=password=x,y",
                "kubectl create secret generic x --from-literal=password=***",
            ),
            (
                "docker run --env=MYSQL_ROOT_PASSWORD=x image",
                "docker run --env=MYSQL_ROOT_PASSWORD=*** image",
            ),
            (
                "helm --set=auth.rootPassword=x,image=y",
                "helm --set=auth.rootPassword=***",
            ),
            ("app --token  x", "app --token  ***"),
            (
                "curl -H Authorization:Bearer x",
                "curl -H Authorization:Bearer ***",
            ),
            ("curl -su me:x https://h", "curl -su me:*** https://h"),
            (
                "az AccountName=a;AccountKey=x==;B=c",
                "az AccountName=a;AccountKey=***;B=c",
            ),
            ("smbclient -U me%x //h/s", "smbclient -U me%*** //h/s"),
            (
                "redis-server --requirepass x",
                "redis-server --requirepass ***",
            ),
            ("keytool -storepass x -v", "keytool -storepass *** -v"),
            ("rails SECRET_KEY_BASE=x", "rails SECRET_KEY_BASE=***"),
            (
                "etcdctl --user root:x get a",
                "etcdctl --user root:*** get a",
            ),
            (
                "git clone https://0123456789abcdef01234567@host/r",
                "git clone https://***@host/r",
            ),
            ("sync me:x@host dir", "sync me:***@host dir"),
            (
                "azcopy https://h/c?sv=1&sig=x%3D",
                "azcopy https://h/c?sv=1&sig=***",
            ),
        ] {
            assert_eq!(redact(line).as_deref(), Some(redacted));
        }
    }

    #[test]
    fn a_secret_goes_to_the_end_of_its_argument() {
        for (line, redacted) in [
            (
                "app\0--password=correct horse battery\0-v",
                "app\0--password=***\0-v",
            ),
            (
                "app\0--password\0correct horse\0-v",
                "app\0--password\0***\0-v",
            ),
            (
                "app\0--password\0\0--port\x001",
                "app\0--password\0\0--port\x001",
            ),
            (
                "curl\0-H\0Authorization: Bearer abc\0h",
                "curl\0-H\0Authorization: Bearer ***\0h",
            ),
            (
                "sh\0-c\0mysql -px db && echo done",
                "sh\0-c\0mysql -p*** db && echo done",
            ),
            ("mysql\0-pcorrect horse", "mysql\0-p***"),
        ] {
            let hidden = redact(line).unwrap_or_else(|| line.to_owned());
            assert_eq!(hidden, redacted);
        }
        assert_eq!(joined("sleep\0infinity"), "sleep infinity");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for line in [
            "sleep infinity",
            "kubelet --token-file /x --tls-private-key-file=/y",
            "git clone https://host/a@b",
            "ssh user@host",
            "app --password= --port 1",
            "ssh -p 22 user@host",
            "docker run -p 80:80 -u 1000:1000 image",
            "rsync --bypass x --compass y",
            "mysql -p db",
            "cp -p a b",
            "kubectl get secret -o yaml",
            "app --key=value --tokens 5 passwd",
            "java -Xmx1g -cp a:b:c Main",
            "curl -u me https://h",
            "eyJ AKIA ghp_",
            "docker run -v /etc/passwd:/etc/passwd:ro -v /run/secrets/token:/t image",
            "docker pull host:5000/a@sha256:0123",
            "npx npm:chalk@5 git@host:path",
            "ip addr add fd00::1/64 dev eth0",
            "java -Dfile.encoding=UTF-8 -agentlib:jdwp=transport=dt,server=y",
            "curl -sSf https://h/?sv=1",
            "",
        ] {
            assert_eq!(redact(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn a_redacted_line_has_nothing_more_to_hide(line in "([ -~]|\\x00|.){0,200}") {
            let once = redact(&line).unwrap_or(line);
            prop_assert_eq!(redact(&once).unwrap_or_else(|| once.clone()), once);
        }
    }
}
