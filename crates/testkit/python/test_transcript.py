"""The published transcript, call by call, with the library it is written in."""

import datetime

import requests

IDLE = {"pid": 0, "name": "System Idle process", "status": "running"}


def sample(**more):
    return {
        "boottime": 4334434344.45,
        "loadavg": [0.0, 0.4, 0.2],
        "cpu_usage_percent": [12.4, 1.8, 8.7, 6.9],
        "memory_usage_percent": 32.0,
        "cpu": {
            "usage_percent": 7.45,
            "loadavg": [0.0, 0.4, 0.2],
            "cpus": [
                {"cpu": 0, "usage_percent": 12.4, "frequency_mhz": 2400.0, "modes": {"user": 10.4, "idle": 87.6}},
                {"cpu": 1, "usage_percent": 1.8, "frequency_mhz": 2400.0},
            ],
        },
        "memory": {"total_bytes": 8000000000, "free_bytes": 1000000000, "used_bytes": 2560000000, "swap_total_bytes": 0},
        "processes": [IDLE, {"pid": 1, "name": "init"}, {"pid": 33, "name": "kswapd0"}, {"pid": 4566, "name": "bash"}],
        **more,
    }


def register(S, ip, name):
    answer = requests.post(S + "/nodes", json={"ip": ip, "hostname": name})
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"]
    return answer


def test_the_transcript_works_literally(api):
    S = api
    for ip, name in [("192.168.2.56", "c"), ("192.168.2.10", "a"), ("192.168.2.11", "b")]:
        register(S, ip, name)
        assert requests.put(S + "/nodes/" + ip, json=sample()).status_code == 204
    assert requests.get(S + "/nodes").json() == ["192.168.2.10", "192.168.2.11", "192.168.2.56"]

    node = requests.get(S + "/nodes/192.168.2.10").json()
    for key in ["boottime", "loadavg", "cpu_usage_percent", "memory_usage_percent"]:
        assert node[key] == sample()[key]
    assert "time" in node and node["age_seconds"] >= 0

    cpu = requests.get(S + "/nodes/192.168.2.10/cpu").json()
    assert [one["frequency_mhz"] for one in cpu["cpus"]] == [2400.0, 2400.0]
    memory = requests.get(S + "/nodes/192.168.2.10/memory").json()
    assert memory["total_bytes"] == 8000000000 and memory["swap_total_bytes"] == 0
    assert requests.get(S + "/nodes/192.168.2.10/proc").json() == [0, 1, 33, 4566]
    assert requests.get(S + "/nodes/192.168.2.10/proc/0").json().items() >= IDLE.items()

    past = [sample(time="2022-03-01 13:45:00"), sample(time="2022-03-01 13:47:00"), sample(time="2022-03-29 00:00:00")]
    assert requests.put(S + "/nodes/192.168.2.10", json=past).status_code == 204
    history = requests.get(
        S + "/192.168.2.10/cpu", params={"from": "2022-03-01 13:45:00", "to": "2022-03-28 00:00:00"}
    ).json()
    assert list(history) == ["2022-03-01 13:45:00", "2022-03-01 13:47:00"]
    assert all(entry == sample()["cpu"] for entry in history.values())
    both = requests.get(
        S + "/nodes/192.168.2.10/cpu", params={"from": "2022-03-01 13:45:00", "to": "2022-03-28 00:00:00"}
    ).json()
    assert both == history

    body = {"ip": "192.168.2.51", "hostname": "test-node.testnet.net"}
    created = requests.post(S + "/nodes", json=body)
    assert created.status_code == 201 and created.headers["Location"].endswith("/nodes/192.168.2.51")
    assert requests.post(S + "/nodes", json=body).status_code == 200
    assert requests.put(S + "/nodes/192.168.2.51", json=sample()).status_code == 204
    assert "192.168.2.51" in requests.get(S + "/nodes").json()
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    assert requests.delete(S + "/nodes/192.168.2.51").status_code == 204
    assert "192.168.2.51" not in requests.get(S + "/nodes").json()
    assert requests.put(S + "/nodes/192.168.2.51", json=sample()).status_code == 404
    kept = requests.get(S + "/192.168.2.51/memory", params={"from": begin.isoformat()}).json()
    assert [entry for entry in kept.values()] == [sample()["memory"]]


def test_errors_are_problem_documents_with_the_right_status(api):
    S = api
    register(S, "192.168.2.10", "a")
    for method, path, arguments, status in [
        ("get", "/192.168.2.10/cpu", {"params": {"from": "yesterday"}}, 400),
        ("get", "/192.168.2.10/cpu", {"params": {"from": "2022-03-02 00:00:00", "to": "2022-03-01 00:00:00"}}, 400),
        ("get", "/nodes/192.168.2.10/proc/seven", {}, 400),
        ("put", "/nodes/192.168.2.10", {"data": "{"}, 400),
        ("get", "/nodes/192.168.2.12", {}, 404),
        ("get", "/nodes/192.168.2.10/proc/99", {}, 404),
        ("get", "/no/such/path", {}, 404),
        ("patch", "/nodes", {}, 405),
        ("put", "/nodes/192.168.2.10", {"data": b" " * (9 << 20)}, 413),
        ("put", "/nodes/192.168.2.10", {"json": {"nonsense": 1}}, 422),
        ("put", "/nodes/192.168.2.10", {"json": {"cpu": {"usage_percent": "much"}}}, 422),
        ("post", "/nodes", {"json": {"ip": "192.168.2.300", "hostname": "x"}}, 422),
    ]:
        answer = requests.request(method, S + path, **arguments)
        problem = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status), (method, path, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "/data" not in answer.text and "SELECT" not in answer.text
    assert "192.168.2.10" in requests.get(S + "/nodes/192.168.2.12").json()["names"]


def test_a_sample_older_than_the_retention_is_refused_and_says_so(tmp_path):
    from conftest import Server

    server = Server(["api", "--listen", "127.0.0.1:0", "--database", "mem://", "--retention", "14d"])
    register(server.url, "192.168.2.10", "a")
    answer = requests.put(server.url + "/nodes/192.168.2.10", json=sample(time="2022-03-01 13:45:00"))
    assert answer.status_code == 422 and "retention" in answer.json()["detail"]
    server.stop()
