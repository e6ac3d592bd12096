"""The page for people, in a real Chromium."""

import contextlib
import os
import re
import subprocess
import sys
import time

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path) as driver:
        yield driver


@contextlib.contextmanager
def chromium(tmp_path, *more):
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    for argument in [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1400,900",
        f"--user-data-dir={tmp_path}/profile",
        *more,
    ]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(os.environ.get("CHROMEDRIVER", "/usr/bin/chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def rows(browser):
    """The texts of the table, read at once: the page replaces its rows every few seconds."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#processes tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent));"
    )


def wait(browser, condition):
    return WebDriverWait(browser, 60, 0.1).until(lambda _: condition())


def test_the_busiest_process_is_at_the_top_and_columns_sort(standalone, browser):
    busy = subprocess.Popen([sys.executable, "-c", "import sys\nname = 'the-busy-one'\nwhile True: pass"])
    try:
        browser.get(standalone)
        wait(browser, lambda: any("the-busy-one" in row[-1] for row in rows(browser)[:3]))
        cpu = next(row for row in rows(browser) if "the-busy-one" in row[-1])
        assert cpu[0] == str(busy.pid) and float(cpu[3]) > 10
        shown = browser.find_element(By.ID, "state").text
        assert re.match(r"\d+ of \d+ processes by cpu", shown), shown
        # It refreshes by itself.
        wait(browser, lambda: browser.find_element(By.ID, "state").text != shown)
        if "NODESTATS_PICTURE" in os.environ:
            browser.save_screenshot(os.environ["NODESTATS_PICTURE"])
        for kind in ["memory", "read", "write", "cpu"]:
            browser.find_element(By.CSS_SELECTOR, f"th[data-sort={kind}] button").click()
            wait(browser, lambda: f"by {kind}" in browser.find_element(By.ID, "state").text)
            head = browser.find_element(By.CSS_SELECTOR, f"th[data-sort={kind}]")
            assert head.get_attribute("aria-sort") == "descending"
        errors = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
        assert errors == [], errors
    finally:
        busy.kill()
        busy.wait()


def test_a_moment_of_the_past_is_shown_as_it_was_and_can_be_sent(standalone, browser):
    gone = subprocess.Popen([sys.executable, "-c", "import sys\nname = 'the-gone-one'\nwhile True: pass"])
    browser.get(standalone)
    wait(browser, lambda: any("the-gone-one" in row[-1] for row in rows(browser)))
    # A link tells whole seconds: one that begins after the sample that was seen, which may be this second's.
    moment = int(time.time()) + 1
    wait(browser, lambda: time.time() > moment)
    gone.kill()
    gone.wait()
    wait(browser, lambda: rows(browser) and not any("the-gone-one" in row[-1] for row in rows(browser)))
    # As somebody would open it who was sent a link.
    browser.execute_script(f"location.hash = '#at={moment}&span=3600';")
    wait(browser, lambda: any("the-gone-one" in row[-1] for row in rows(browser)))
    assert "as it was then" in browser.find_element(By.ID, "state").text
    link = browser.find_element(By.ID, "link").get_attribute("href")
    assert f"at={moment}" in link and "node=" in link, link
    for chart in ["chart-cpu", "chart-memory"]:
        wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, f"#{chart} canvas"))
        points = f"return Number(document.getElementById('{chart}').dataset.points);"
        wait(browser, lambda: browser.execute_script(points) > 1)
    # The lines of a process, of one that is gone too.
    browser.execute_script(
        "[...document.querySelectorAll('#processes tr')]"
        ".find((row) => row.lastChild.textContent.includes('the-gone-one')).click();"
    )
    points = "const drawn = document.getElementById('chart-process-cpu'); return drawn ? Number(drawn.dataset.points) : 0;"
    wait(browser, lambda: browser.execute_script(points) > 0)
    assert f"pid={gone.pid}" in browser.find_element(By.ID, "link").get_attribute("href")
    # The slider goes through the span, and the button back to now.
    browser.execute_script(
        "const slider = document.getElementById('slider'); slider.value = 1000;"
        "slider.dispatchEvent(new Event('input'));"
    )
    wait(browser, lambda: f"at={moment}" in browser.find_element(By.ID, "link").get_attribute("href"))
    browser.find_element(By.ID, "live").click()
    wait(browser, lambda: "at=" not in browser.find_element(By.ID, "link").get_attribute("href"))
    wait(browser, lambda: rows(browser) and not any("the-gone-one" in row[-1] for row in rows(browser)))
    errors = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    # Before it is asked about again, a process that is gone has no figures of now.
    errors = [entry for entry in errors if "/proc/" not in entry["message"]]
    assert errors == [], errors


def test_hostile_names_are_shown_and_do_nothing(api, browser):
    hostile = "<img src=x onerror=\"document.title='broken'\">"
    requests.post(api + "/nodes", json={"ip": "192.168.2.51", "hostname": "test-node"}).raise_for_status()
    process = {"pid": 7, "name": hostile, "command_line": hostile, "user": hostile, "cpu_percent": 5.0}
    requests.put(api + "/nodes/192.168.2.51", json={"processes": [process]}).raise_for_status()
    browser.get(api)
    wait(browser, lambda: rows(browser) and rows(browser)[0][1] == hostile)
    assert browser.title == "nodestats"
    assert browser.find_elements(By.TAG_NAME, "img") == []


def test_a_page_of_another_site_reads_nothing(api, browser):
    # The same server under another name is what DNS rebinding makes of it.
    port = api.rsplit(":", 1)[1]
    browser.get("data:text/html,<title>other</title>")
    read = browser.execute_async_script(
        "const done = arguments[0];"
        f"fetch('http://127.0.0.1:{port}/nodes').then((r) => r.text()).then(done, () => done('refused'));"
    )
    assert read == "refused"
    assert requests.get(api + "/nodes", headers={"Host": f"evil.example:{port}"}).status_code == 403


def test_a_name_that_is_made_to_point_here_reads_nothing(api, tmp_path):
    # DNS rebinding: the browser takes this server for a site of its own, and sends what it says.
    port = api.rsplit(":", 1)[1]
    with chromium(tmp_path, "--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        for path in ["/", "/nodes"]:
            browser.get(f"http://evil.example:{port}{path}")
            assert "not to the name in the Host header" in browser.page_source
        read = browser.execute_async_script(
            "const done = arguments[0];"
            "fetch('/nodes').then((r) => done(r.status), () => done('refused'));"
        )
        assert read == 403


def test_the_page_asks_for_a_token_where_the_server_does(asking, browser):
    url, token = asking
    browser.get(url)
    field = browser.find_element(By.ID, "token")
    wait(browser, field.is_displayed)
    field.send_keys("nonsense\n")
    wait(browser, lambda: "token" in browser.find_element(By.ID, "state").text and field.is_displayed())
    field.send_keys(token + "\n")
    wait(browser, lambda: len(rows(browser)) > 3)
    assert not field.is_displayed()
    # For as long as the tab is open, and no longer.
    browser.refresh()
    wait(browser, lambda: len(rows(browser)) > 3)
    kept = browser.execute_script("return [sessionStorage.length, localStorage.length, document.cookie];")
    assert kept == [1, 0, ""]
