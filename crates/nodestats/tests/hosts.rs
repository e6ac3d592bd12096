//! Plain hosts, each a network namespace with an address of its own: a server that others reach by
//! TLS alone, hosts that join by the line it prints, people with tokens.

use std::path::{Path, PathBuf};
use std::process::Command;

use nodestats_testkit::logs::lines_of;
use nodestats_testkit::{Authority, Lan, Program, Run, eventually};
use serde_json::Value;

const SERVER: &str = "server";
const NEXT: &str = "next";

struct Site {
    lan: Lan,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self {
            lan: Lan::new(&[SERVER, NEXT]),
            folder: tempfile::tempdir().expect("temporary folder"),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A server at its host's own address, on its data directory.
    fn serve(&self, more: &[&str]) -> Program {
        let listen = format!("{}:8443", self.lan.address(SERVER));
        let data = self.path("data");
        let mut arguments = vec!["standalone", "--listen", &listen, "--data-dir", &data];
        arguments.extend(["--interval", "1s", "--hostname", "server"]);
        arguments.extend(more);
        let log = self.folder.path().join("server.log");
        self.lan.serve(SERVER, &arguments, &log)
    }

    /// `nodestats token …` of this server.
    fn token(&self, arguments: &[&str]) -> Run {
        let data = self.path("data");
        let all: Vec<&str> = ["token"].iter().chain(arguments).copied().collect();
        Program::run("nodestats", &[&*all, &["--data-dir", &data]].concat())
    }

    fn told(&self, arguments: &[&str]) -> String {
        let run = self.token(arguments);
        assert!(run.status.success(), "{run:?}");
        run.stdout
    }

    /// A token in a file.
    fn token_file(&self, name: &str, arguments: &[&str]) -> String {
        let path = self.path(name);
        std::fs::write(&path, self.told(arguments)).expect("written");
        path
    }

    /// An agent on the next host, as this line says and as this host.
    fn agent(&self, line: &str, hostname: &str) -> (Program, PathBuf) {
        let state = self.path(hostname);
        let log = self.folder.path().join(format!("{hostname}.log"));
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("nodestats-agent"));
        let mut arguments: Vec<&str> = words.collect();
        arguments.extend(["--hostname", hostname, "--state-dir", &state]);
        arguments.extend(["--interval", "1s"]);
        let program = self.lan.start(NEXT, "nodestats-agent", &arguments, &log);
        (program, log)
    }

    /// What `kubectl-nodestats get` answers on the next host.
    fn get(&self, trust: &[&str], token: &str, what: &[&str]) -> Result<Value, String> {
        let url = format!("https://{}:8443", self.lan.address(SERVER));
        let mut arguments = vec!["--server", &*url, "--token-file", token];
        arguments.extend(trust);
        arguments.push("get");
        arguments.extend(what);
        arguments.extend(["-o", "json"]);
        let run = self.lan.run(NEXT, "kubectl-nodestats", &arguments);
        if !run.status.success() {
            return Err(run.stderr);
        }
        Ok(serde_json::from_str(&run.stdout).expect("JSON"))
    }
}

/// Waits until an agent's log says this.
async fn says(log: &Path, text: &str) {
    eventually(text, async || {
        let log = std::fs::read_to_string(log).unwrap_or_default();
        log.contains(text).then_some(())
    })
    .await;
}

fn fingerprint(line: &str) -> String {
    let mut words = line.split_whitespace();
    words.find(|word| *word == "--fingerprint");
    words.next().expect("a fingerprint").to_owned()
}

fn names(list: &Value) -> Vec<&str> {
    let nodes = list.as_array().into_iter().flatten();
    let mut names: Vec<&str> = nodes.filter_map(|node| node["hostname"].as_str()).collect();
    names.sort_unstable();
    names
}

fn age(list: &Value, name: &str) -> Option<f64> {
    let nodes = list.as_array()?.iter();
    let mut found = nodes.filter(|node| node["hostname"] == name);
    found.next()?["age_seconds"].as_f64()
}

#[tokio::test]
async fn the_next_host_joins_by_the_line_and_ends_with_its_token() {
    let site = Site::new();
    let server = site.serve(&["--tls-self-signed"]);
    let url = format!("https://{}:8443", site.lan.address(SERVER));
    assert_eq!(server.url(), url);
    let line = site.told(&["join", "--ttl", "10m"]);
    assert!(line.starts_with(&format!(
        "nodestats-agent --server {url} --fingerprint sha256:"
    )));
    let trust = ["--fingerprint", &*fingerprint(&line)];
    let viewer = site.token_file("viewer", &["issue", "--role", "viewer", "--name", "jane"]);
    let all = site.token_file("all", &["issue", "--role", "process-viewer"]);
    let (agent, _) = site.agent(&line, "web-1");
    let get = |token: &str, what: &[&str]| site.get(&trust, token, what);
    eventually("both hosts", async || {
        let list = get(&viewer, &[]).ok()?;
        (names(&list) == ["server", "web-1"] && age(&list, "web-1").is_some()).then_some(())
    })
    .await;
    let list = get(&viewer, &[]).expect("a list");
    let node = list
        .as_array()
        .and_then(|list| list.iter().find(|node| node["hostname"] == "web-1"));
    assert_eq!(node.expect("there")["ip"], site.lan.address(NEXT));
    // Processes are for whom they were shown to.
    let refused = get(&viewer, &["web-1", "--processes"]).expect_err("no processes");
    assert!(refused.contains("process-viewer"), "{refused}");
    let rows = get(&all, &["web-1", "--processes", "--sort", "memory"]).expect("rows");
    assert!(rows["total"].as_u64() > Some(0), "{rows}");
    // The line was for one host.
    let (second, log) = site.agent(&line, "web-2");
    says(&log, "as many hosts as it is for have joined").await;
    drop(second);
    // The next start needs no line: the host has a token of its own.
    assert!(agent.terminate().success());
    let without = line.split(" --join ").next().expect("a line");
    let (agent, log) = site.agent(without, "web-1");
    eventually("it again", async || {
        let list = get(&viewer, &[]).ok()?;
        (age(&list, "web-1")? < 3.0).then_some(())
    })
    .await;
    let kept = std::fs::read_to_string(site.folder.path().join("web-1/token__web-1"));
    let kept = kept.expect("its token");
    let listed = site.told(&["list"]);
    assert!(
        listed.contains("host web-1") && listed.contains("viewer jane"),
        "{listed}"
    );
    assert!(!listed.contains(kept.trim()), "no secret is listed");
    // Revoked within seconds, and nothing is lost on the host meanwhile.
    let told = site.told(&["revoke", "--node", "web-1"]);
    assert!(told.ends_with("is revoked\n"), "{told}");
    says(&log, "none of this server's, was revoked, or has expired").await;
    let before = get(&viewer, &[]).expect("a list");
    eventually("no more samples", async || {
        let list = get(&viewer, &[]).ok()?;
        (age(&list, "web-1")? > age(&before, "web-1")? + 2.0).then_some(())
    })
    .await;
    assert_eq!(
        names(&get(&viewer, &[]).expect("a list")),
        ["server", "web-1"]
    );
    drop(agent);
    // What was done with tokens, and who read processes, is on record, and no secret with it.
    assert!(server.terminate().success());
    let log = std::fs::read_to_string(site.folder.path().join("server.log")).expect("a log");
    for parts in [
        ["token issued", "way=local"],
        ["token issued", "name: \"jane\""],
        ["host joined", "node: \"web-1\""],
        ["token revoked", "node: \"web-1\""],
        ["what=processes", "somebody (token "],
        ["what=registration", "node=web-1"],
    ] {
        let mut audit = lines_of(&log, "nodestats::audit").into_iter();
        let found = audit.any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{parts:?}: {log}");
    }
    assert!(!log.contains("nst_") && !log.contains("nsj_"), "{log}");
    // A token of its own again, where no server holds the database.
    let issued = site.told(&["issue", "--node", "web-1", "--ttl", "90d"]);
    std::fs::write(site.folder.path().join("web-1/token__web-1"), issued).expect("written");
    let _server = site.serve(&["--tls-self-signed"]);
    let (_agent, _) = site.agent(without, "web-1");
    eventually("all that waited", async || {
        let list = get(&viewer, &[]).ok()?;
        (age(&list, "web-1")? < 3.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nobody_is_taken_for_the_server_or_let_in_unknown() {
    let site = Site::new();
    let data = site.path("data");
    // Not without TLS, and not by half of it.
    let listen = format!("{}:8443", site.lan.address(SERVER));
    for more in [&[][..], &["--require-tokens"]] {
        let arguments = [
            &["standalone", "--listen", &listen, "--data-dir", &data],
            more,
        ]
        .concat();
        let run = site.lan.run(SERVER, "nodestats", &arguments);
        assert_eq!(run.status.code(), Some(1));
        assert!(run.stderr.contains("--tls-self-signed"), "{}", run.stderr);
    }
    // A certificate that an authority has signed, and that is replaced while it is served.
    let authority = Authority::new();
    let stranger = Authority::new();
    let address = site.lan.address(SERVER);
    let write = |authority: &Authority| {
        let [certificate, key] = authority.leaf("server", address);
        std::fs::write(site.path("crt"), certificate).expect("written");
        std::fs::write(site.path("key"), key).expect("written");
    };
    write(&authority);
    let [crt, key] = [site.path("crt"), site.path("key")];
    let [own, other] = [site.path("own.pem"), site.path("other.pem")];
    std::fs::write(&own, authority.pem()).expect("written");
    std::fs::write(&other, stranger.pem()).expect("written");
    let _server = site.serve(&["--tls-cert", &crt, "--tls-key", &key]);
    let viewer = site.token_file("viewer", &["issue", "--role", "viewer"]);
    let trust = ["--certificate-authority", &*own];
    eventually("an answer", async || site.get(&trust, &viewer, &[]).ok()).await;
    let wrong = ["--certificate-authority", &*other];
    let refused = site
        .get(&wrong, &viewer, &[])
        .expect_err("not this authority");
    assert!(refused.contains("certificate"), "{refused}");
    let zeros = format!("sha256:{}", "0".repeat(64));
    let refused = site.get(&["--fingerprint", &zeros], &viewer, &[]);
    assert!(refused.expect_err("not this one").contains("certificate"));
    // The line of a server whose certificate somebody has signed names no fingerprint.
    let line = site.told(&["join"]);
    assert!(!line.contains("--fingerprint"), "{line}");
    let (_agent, log) = site.agent(&line, "web-1");
    says(&log, "does not take samples").await;
    // Without a token, and with nonsense.
    let nonsense = site.path("nonsense");
    for text in ["nonsense", "nst_0000000000000000_00"] {
        std::fs::write(&nonsense, text).expect("written");
        let refused = site.get(&trust, &nonsense, &[]).expect_err("nobody");
        assert!(refused.contains("token"), "{refused}");
    }
    // The files change, and so does what is served, without a restart.
    write(&stranger);
    eventually("the new certificate", async || {
        site.get(&wrong, &viewer, &[]).ok()
    })
    .await;
    site.get(&trust, &viewer, &[])
        .expect_err("the old one is gone");
    // The socket is for who runs the server.
    let socket = site.folder.path().join("data/nodestats.sock");
    let mode = std::fs::metadata(&socket).expect("a socket").permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    let public = Command::new("chmod")
        .args(["755"])
        .arg(site.folder.path())
        .arg(&data)
        .status();
    assert!(public.expect("runs").success());
    let run = Program::run_as_nobody("nodestats", &["token", "list", "--data-dir", &data]);
    assert!(!run.status.success());
    assert!(run.stderr.contains("who runs the server"), "{}", run.stderr);
    // Nothing is made where no server was.
    let elsewhere = site.path("elsewhere");
    std::fs::create_dir(&elsewhere).expect("made");
    let run = Program::run("nodestats", &["token", "list", "--data-dir", &elsewhere]);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(run.stderr.contains("--data-dir"), "{}", run.stderr);
    assert_eq!(std::fs::read_dir(&elsewhere).expect("readable").count(), 0);
}
