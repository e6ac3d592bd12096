//! `nodestats api` before a real `SurrealDB` server.

use std::time::SystemTime;

use nodestats_testkit::{DatabaseServer, Frames, Program, eventually, get};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::Registration;
use serde_json::{Value, json};

fn api(database: &str, user: &str, password: &str) -> Vec<String> {
    let mut arguments = vec!["api", "--listen", "127.0.0.1:0", "--database", database];
    arguments.extend(["--database-user", user, "--database-password", password]);
    arguments.into_iter().map(str::to_owned).collect()
}

fn serve(database: &str) -> Program {
    serve_with(database, &[])
}

fn serve_with(database: &str, more: &[&str]) -> Program {
    let arguments = api(database, DatabaseServer::USER, DatabaseServer::PASSWORD);
    let arguments = arguments.iter().map(String::as_str);
    Program::serve(&arguments.chain(more.iter().copied()).collect::<Vec<_>>())
}

fn keys(history: &Value) -> Vec<&String> {
    history.as_object().expect("an object").keys().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_a_server_and_outlive_its_absence() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let database = DatabaseServer::start(folder.path());
    let servers = [serve(&database.url()), serve(&database.url())];
    let clients = servers.each_ref().map(Program::client);
    let registration = Registration::new("192.168.2.10", "test-node");
    assert!(clients[0].register(&registration).await.expect("new"));
    // What one replica took the other answers.
    let begin = Timestamp::from_system(SystemTime::now()).plus_micros(-3600 * 1_000_000);
    let mut frames = Frames::new(begin.floor_to(1_000_000));
    for client in [&clients[0], &clients[1], &clients[1]] {
        let frame = frames.next_frame();
        let pushed = client.push_frames("test-node", frame).await;
        pushed.expect("stored");
    }
    for client in &clients {
        assert_eq!(
            get(client, "/nodes").await,
            Some(json!(["192.168.2.10"])),
            "a replica knows all nodes"
        );
        let busy = get(client, "/nodes/192.168.2.10/proc/7").await;
        assert_eq!(busy.expect("a process")["cpu_percent"], 100.0);
        let history = get(client, "/192.168.2.10?from=0").await;
        assert_eq!(keys(&history.expect("a history")).len(), 3);
    }
    // While the database is away nothing is acknowledged, and the program says so.
    let again = database.kill();
    let frame = frames.next_frame();
    let refused = clients[0].push_frames("test-node", frame.clone()).await;
    assert_eq!(refused.expect_err("not stored").status(), Some(503));
    let ready = clients[0].get("/readyz", &[]).await;
    assert_eq!(ready.expect_err("not ready").status(), Some(503));
    assert!(clients[0].get("/healthz", &[]).await.is_ok());
    // When it is back so is everything, without a restart.
    let database = again();
    for client in &clients {
        eventually("the database", async || {
            client.push_frames("test-node", frame.clone()).await.ok()
        })
        .await;
        let history = get(client, "/192.168.2.10?from=0").await;
        assert_eq!(keys(&history.expect("a history")).len(), 4);
    }
    for server in servers {
        assert_eq!(server.terminate().code(), Some(0));
    }
    drop(database);
}

#[tokio::test]
async fn a_server_is_asked_over_tls_where_its_authority_is_trusted() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let database = DatabaseServer::start_with_tls("127.0.0.1", folder.path());
    let authority = database.authority().display().to_string();
    let trust = |file| ["--database-certificate-authority", file];
    let server = serve_with(&database.url(), &trust(&authority));
    let client = server.client();
    let registration = Registration::new("192.168.2.10", "test-node");
    assert!(client.register(&registration).await.expect("new"));
    drop(server);
    // The public authorities did not sign it, another file holds none, and a third one is not there.
    let key = folder.path().join("tls.key").display().to_string();
    let missing = folder.path().join("missing").display().to_string();
    for (more, said) in [
        (&[] as &[&str], "cannot open the database wss://127.0.0.1:"),
        (&trust(&key), "it holds no certificate"),
        (&trust(&missing), "cannot read"),
    ] {
        let arguments = api(
            &database.url(),
            DatabaseServer::USER,
            DatabaseServer::PASSWORD,
        );
        let arguments = arguments.iter().map(String::as_str);
        let arguments: Vec<&str> = arguments.chain(more.iter().copied()).collect();
        let run = Program::run("nodestats", &arguments);
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        assert!(run.stderr.contains(said), "{run:?}");
    }
}

#[test]
fn a_server_that_does_not_let_us_in_is_named_and_the_password_is_not() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let database = DatabaseServer::start(folder.path());
    let wrong = api(&database.url(), DatabaseServer::USER, "a wrong password");
    let nowhere = api("ws://127.0.0.1:1", DatabaseServer::USER, "a wrong password");
    for arguments in [wrong, nowhere] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let run = Program::run("nodestats", &arguments);
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        assert!(
            run.stderr
                .contains("cannot open the database ws://127.0.0.1:"),
            "{run:?}"
        );
        assert!(!run.stderr.contains("a wrong password"), "{run:?}");
    }
}
