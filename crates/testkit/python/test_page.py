"""The page for people, in a real Chromium."""

import os
import re
import subprocess
import sys

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture
def browser(tmp_path):
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
    ]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(os.environ.get("CHROMEDRIVER", "/usr/bin/chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
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
