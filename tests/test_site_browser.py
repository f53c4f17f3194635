"""The catalogue in a real browser: what its script does, what is left without it, on a phone too, and to a keyboard."""

import functools
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from hft2ane.records.recipe import Task, Variant, Wanted
from tests.releases import nights, release
from tests.test_site import EVIL, hostile, hostile_run, made, written

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# Nothing is asked of the network but the site itself.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
TASKS: tuple[Task, ...] = ("fill-mask", "sentence-embedding", "text-classification", "text-generation")
VARIANTS: tuple[tuple[Variant, ...], ...] = (("float16",), ("float16", "int8"), ("float16", "int8", "mixed-4"))


def models() -> Iterator[dict[str, Any]]:
    rnd = random.Random(3)
    for n in range(24):
        yield {
            "id": f"{'up' if n % 2 else 'Down'}/model-{n}-base",
            "task": TASKS[n % 4],
            "family": ("bert", "roberta", "deberta-v2")[n % 3],
            "license": ("mit", "apache-2.0")[n % 2],
            "size": rnd.randrange(5_000_000, 600_000_000),
            "psnr": rnd.uniform(52.0, 84.0),
            "lengths": ((128,), (64, 128))[n // 3 % 2],
            "variants": VARIANTS[n % 3],
        }


pytestmark = pytest.mark.packages

# Of the screen, and what is beyond it.
WIDTHS = "(e => [innerWidth, e.scrollWidth - e.clientWidth])(document.documentElement)"
# What ends to the right of the screen, and is not in a part that scrolls by itself, or is for screen readers only.
OUTSIDE = """[...document.querySelectorAll("main *")]
  .filter((e) => !e.closest(".scroll, pre, .quiet, thead") && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.outerHTML.slice(0, 200))"""
# Texts whose colour is too near to that of the nearest ground below them, by WCAG 2.
CONTRAST = """(() => {
  const numbers = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => numbers(c).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(e.outerHTML.slice(0, 100));
  }
  return found;
})()"""


@dataclass
class Site:
    """A catalogue that is served, and a browser that looks at it."""

    browser: Chrome
    url: str

    def go(self, page: str, width: int = 1200, script: bool = True) -> None:
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        self.tell("Emulation.setScriptExecutionDisabled", value=not script)
        self.browser.get(f"{self.url}/{page}")

    def tell(self, command: str, **values: Any) -> Any:
        return self.browser.execute_cdp_cmd(command, values)

    def js(self, script: str, *values: Any) -> Any:
        return self.browser.execute_script(f"return {script}", *values)

    def one(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def rows(self) -> list[str]:
        """The models that are shown."""
        return list(self.js("[...document.querySelectorAll('#models tbody tr')].filter(r => r.offsetHeight)"
                            ".map(r => r.cells[0].textContent.trim())"))  # fmt: skip

    def errors(self) -> list[str]:
        return [str(each["message"]) for each in self.browser.get_log("browser")]  # type: ignore[attr-defined]


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


def found(what: str, names: tuple[str, ...], package: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.fail(f"these tests need {what}, and there is none: apt-get install {package}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("catalogue")
    wanted = [
        Wanted("EleutherAI/pythia-70m", "org/pythia-70m-ane", "m.yaml:4"),
        Wanted("up/closed", "org/closed-ane", "m.yaml:6"),
    ]
    written(folder, made([release(**each) for each in models()], [*reversed(nights())], wanted))
    bad = [Wanted(EVIL, f"org/{EVIL}", EVIL, paused=EVIL)]
    written(folder / "evil", made([hostile()], [hostile_run()], bad))
    options = ChromeOptions()
    options.binary_location = found("Chromium", BROWSERS, "chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    service = Service(found("ChromeDriver", ("chromedriver",), "chromium-driver"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    browser = Chrome(options=options, service=service)
    try:
        yield Site(browser, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        browser.quit()
        server.shutdown()
        thread.join()
        server.server_close()


ALL = [each["id"] for each in models()]


def of(test: Callable[[dict[str, Any]], bool]) -> set[str]:
    return {each["id"] for each in models() if test(each)}


def choose(site: Site, name: str, value: str) -> set[str]:
    Select(site.one(f"#{name}")).select_by_value(value)
    return set(site.rows())


def test_search_and_filters_change_the_rows(site: Site) -> None:
    site.go("index.html")
    assert len(site.rows()) == len(ALL)
    assert site.one("#count").text == "All 24 models"
    site.one("#q").send_keys("down MODEL-1")
    assert set(site.rows()) == {name for name in ALL if name.startswith("Down/model-1")}
    site.one("#q").clear()
    for name, value, fits in (
        ("task", "fill-mask", lambda m: m["task"] == "fill-mask"),
        ("family", "deberta-v2", lambda m: m["family"] == "deberta-v2"),
        ("license", "mit", lambda m: m["license"] == "mit"),
        ("os", "16", lambda m: len(m["lengths"]) == 1),
        ("size", "100", lambda m: m["size"] * {1: 1, 2: 0.507, 3: 0.418}[len(m["variants"])] < 100e6),
        ("psnr", "70", lambda m: m["psnr"] >= 70),
    ):
        site.go("index.html")
        shown = choose(site, name, value)
        assert shown == of(fits), name
        assert 0 < len(shown) < len(ALL), name
        assert site.one("#count").text == f"{len(shown)} of 24 models"


def test_one_variant_has_to_fit_everything(site: Site) -> None:
    """The small one is not exact, and the exact one is not small."""
    site.go("index.html")

    def fits(model: dict[str, Any]) -> bool:
        shares = {"float16": (1.0, 0.0), "int8": (0.507, 26.3), "mixed-4": (0.418, 43.4)}
        offers = [(model["size"] * shares[v][0], model["psnr"] - shares[v][1]) for v in model["variants"]]
        return any(size <= 250e6 and psnr >= 60 for size, psnr in offers)

    choose(site, "size", "250")
    both = choose(site, "psnr", "60")
    assert both == of(fits)
    small, exact = (of(lambda m, n=n: fits(m | {"size": 1} if n else m | {"psnr": 200})) for n in (0, 1))  # type: ignore[misc]
    assert both < (small & exact)


def test_a_view_can_be_linked(site: Site) -> None:
    site.go("index.html")
    choose(site, "task", "text-generation")
    site.one("#q").send_keys("up")
    shown, address = site.rows(), site.browser.current_url
    assert address.endswith("/index.html?q=up&task=text-generation")
    site.browser.get("about:blank")
    site.browser.get(address)
    assert site.rows() == shown
    assert 0 < len(shown) < len(ALL)
    site.one("button[type=reset]").click()
    WebDriverWait(site.browser, 5).until(lambda _: site.browser.current_url.endswith("/index.html"))
    assert len(site.rows()) == len(ALL)
    site.browser.get(f"{site.url}/index.html?task=nonsense&q=%3Cscript%3E")
    assert site.one("#task").get_attribute("value") == ""


def test_nothing_found_is_said(site: Site) -> None:
    site.go("index.html?q=nothing-is-called-so")
    assert site.rows() == []
    assert "No model here is like that" in site.one("#none").text
    assert site.one("#count").get_attribute("role") or site.one("#count").tag_name == "output"  # read out


def test_columns_sort(site: Site) -> None:
    site.go("index.html")
    button = site.one("#models thead th:nth-child(5) button")
    button.click()
    best = max(models(), key=lambda each: float(each["psnr"]))["id"]
    assert site.rows()[0] == best
    assert site.one("#models thead th:nth-child(5)").get_attribute("aria-sort") == "descending"
    button.send_keys(Keys.ENTER)
    assert site.rows()[0] != best
    site.one("#models thead th:nth-child(1) button").click()
    names = [name.lower() for name in site.rows()]
    assert names == sorted(names)
    assert len(site.all("[aria-sort]")) == 1


def test_all_can_be_read_without_script(site: Site) -> None:
    site.go("index.html", script=False)
    assert len(site.all("#models tbody tr")) == len(ALL)
    assert all(row.is_displayed() for row in site.all("#models tbody tr"))
    assert not site.one("#filters").is_displayed()
    site.one("#models tbody tr:last-child a").click()
    assert "Text" in site.one(".lead").text
    assert "hf download" in site.one("pre").text
    assert site.all("figure button") == []
    site.go("runs.html", script=False)
    assert site.one(".failure").is_displayed()


PAGES = (
    "index.html",
    "runs.html",
    "requested.html",
    "models/model-2-base-ane.html",
    "evil/index.html",
    "evil/runs.html",
    "evil/requested.html",
    "evil/models/evil-ane.html",
)


@pytest.mark.parametrize("page", PAGES)
def test_pages_scroll_down_only(site: Site, page: str) -> None:
    """On a phone, a tablet and a desk."""
    for width in (390, 800, 1200):
        site.go(page, width=width)
        assert site.js(WIDTHS) == [width, 0]
        site.js("void document.querySelectorAll('details').forEach((each) => (each.open = true))")
        assert site.js(WIDTHS) == [width, 0]
        assert site.js(OUTSIDE) == []


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_refused_or_thrown(site: Site, page: str) -> None:
    """But for plots, which the Hub of these tests, hub.example, does not have; and what is hostile does nothing."""
    site.errors()
    site.go(page)
    site.go(page, width=390)
    assert [each for each in site.errors() if "hub.example" not in each] == []
    assert site.js("document.scripts.length") == 1
    assert "alert(1)" not in site.js("[...document.querySelectorAll('script')].map(s => s.textContent).join()")


def test_a_table_stays_one_for_screen_readers_on_a_phone(site: Site) -> None:
    for page, least in (("index.html", len(ALL)), ("models/model-2-base-ane.html", 8), ("runs.html", 4)):
        site.go(page, width=390)
        roles = [node["role"]["value"] for node in site.tell("Accessibility.getFullAXTree")["nodes"] if "role" in node]
        assert roles.count("row") > least, page
        assert roles.count("table") + roles.count("grid") >= 1, page
        assert roles.count("rowheader") >= least, page


def test_everything_that_one_can_do_has_a_name(site: Site) -> None:
    for page in PAGES:
        site.go(page)
        nodes = site.tell("Accessibility.getFullAXTree")["nodes"]
        for node in nodes:
            role = node.get("role", {}).get("value")
            if role in ("link", "button", "searchbox", "combobox", "image", "region", "table", "navigation"):
                assert node.get("name", {}).get("value") or node["ignored"], (page, node)


def test_code_is_copied(site: Site) -> None:
    site.go("models/model-2-base-ane.html")
    site.tell("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    button = site.all("figure button")[1]
    assert button.get_attribute("aria-label") == "Copy: Python, with hft2ane"
    button.click()
    WebDriverWait(site.browser, 5).until(lambda _: button.text == "Copied")
    copied = site.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == release(**next(m for m in models() if "model-2-" in m["id"])).snippets["python"]


def test_code_is_selected_where_it_cannot_be_copied(site: Site) -> None:
    site.go("models/model-2-base-ane.html")
    site.js("void Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    button = site.one("figure button")
    button.click()
    WebDriverWait(site.browser, 5).until(lambda _: button.text == "Selected")
    assert site.js("getSelection().toString()").startswith("hf download org/model-2-base-ane")


def test_a_keyboard_reaches_all_and_one_sees_where_it_is(site: Site) -> None:
    site.go("index.html")
    reached = []
    for _ in range(18):
        site.browser.switch_to.active_element.send_keys(Keys.TAB)
        style = site.js("(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))")
        assert style[0] != "none", site.js("document.activeElement.outerHTML.slice(0, 100)")
        assert style[1] >= 2
        reached.append(site.js("document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)"))
    assert reached[:5] == ["Skip to the content", "org", "Models", "Runs", "Requested"]
    assert reached[5:14] == ["q", "task", "family", "license", "os", "size", "psnr", "Clear", "Model"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_where_it_stands(site: Site, scheme: str) -> None:
    """Computed by the browser: each text's colour against the nearest ground below it."""
    site.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for page in PAGES:
        site.go(page)
        faint = site.js(CONTRAST)
        assert faint == [], (page, faint)
        ground = site.js("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(251, 251, 249)") == (scheme == "light")
    site.tell("Emulation.setEmulatedMedia", features=[])


def test_a_site_on_disk_works_too(site: Site, tmp_path: Path) -> None:
    """Without a server, as one looks at it after `hft2ane site`."""
    folder = written(tmp_path, made([release(**each) for each in models()]))
    site.go("index.html")
    site.browser.get((folder / "index.html").as_uri())
    assert choose(site, "family", "bert") == of(lambda m: m["family"] == "bert")
    assert site.js("getComputedStyle(document.body).marginTop") == "0px"
