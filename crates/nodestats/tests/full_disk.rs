//! A full disk: nothing is acknowledged, reads go on, writing resumes by itself.

use nodestats_testkit::{SmallDisk, get};
use nodestats_wire::Timestamp;
use nodestats_wire::client::Client;
use nodestats_wire::v1::{Reading, Registration};

async fn put(client: &Client, time: Timestamp) -> Option<u16> {
    let reading = Reading {
        time: Some(time),
        memory_usage_percent: Some(32.0),
        ..Reading::default()
    };
    let put = client.put_readings("small", &[reading]).await;
    put.err().map(|error| error.status().expect("an answer"))
}

async fn times(client: &Client) -> Vec<String> {
    let history = get(client, "/small?from=0").await.expect("a history");
    history
        .as_object()
        .expect("times")
        .keys()
        .cloned()
        .collect()
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_it_has_room_and_loses_nothing() {
    let disk = SmallDisk::new(24);
    let database = format!("surrealkv://{}", disk.path().join("data").display());
    let arguments = ["api", "--listen", "127.0.0.1:0", "--database", &database];
    let server = disk.serve(&arguments);
    let client = server.client();
    let registration = Registration::new("192.168.2.10", "small");
    client.register(&registration).await.expect("registered");
    let begin = Timestamp::from_system(std::time::SystemTime::now()).floor_to(1_000_000);
    let second = |n: i64| begin.plus_micros((n - 3600) * 1_000_000);

    for n in 0..5 {
        assert_eq!(put(&client, second(n)).await, None);
    }
    disk.fill();
    // The kernel may have room in the last page of the log; a few pushes take it.
    let mut acknowledged: Vec<i64> = (0..5).collect();
    let mut refused = 0;
    for n in 5..100 {
        match put(&client, second(n)).await {
            None => acknowledged.push(n),
            status => {
                assert_eq!(status, Some(503));
                refused += 1;
            }
        }
    }
    assert!(refused > 50, "{refused} refused");
    assert_eq!(times(&client).await.len(), acknowledged.len());
    disk.free();
    for n in 100..105 {
        assert_eq!(put(&client, second(n)).await, None, "writing resumes");
        acknowledged.push(n);
    }
    let keys = |found: &[String]| {
        let missing = |n: &&i64| !found.contains(&second(**n).to_key());
        let missing: Vec<&i64> = acknowledged.iter().filter(missing).collect();
        assert!(missing.is_empty(), "lost: {missing:?}");
    };
    keys(&times(&client).await);
    server.kill();
    let server = disk.serve(&arguments);
    keys(&times(&server.client()).await);
    assert_eq!(server.terminate().code(), Some(0));
}
