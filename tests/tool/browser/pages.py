"""Opens an atlas's pages as people do: from the disk, through index, search, feature and prompt; by mouse and by keyboard; on a desk
and on a phone; in light and in dark. Numbers are compared with those in EXPECTED.

pages.py FOLDER EXPECTED [SCREENSHOTS]
"""

import json
import os
import sys
import time
from pathlib import Path

from chromium import Chromium

# Noted from the first moment of each page: whether something moved by itself, and whether a text became a script.
WATCH = """window.shifts = []; window.hacked = 0;
const named = (s) => s.node ? (s.node.outerHTML || s.node.textContent || "").slice(0, 200) : "";
new PerformanceObserver((list) => { for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifts.push([e.value, ...e.sources.map(named)]); })
  .observe({type: "layout-shift", buffered: true});"""


def facts(page):
    return page.do("""Object.fromEntries([...document.querySelectorAll(".facts div")].map((d) =>
        [d.children[0].textContent, d.children[1].textContent]))""")


def number(text):
    return float(text.replace(",", "").replace(" %", "e-2" if "e" not in text else ""))


def percent(text):
    return float(text.replace(" %", "").replace(",", "")) / 100


def close(a, b, tolerance=6e-3):
    assert abs(a - b) <= tolerance * max(abs(a), abs(b)), (a, b)


def go(page, address, ready):
    page.do(f"location.hash = {json.dumps(address)}; 0")
    page.until(ready)


def feature_ready(latent):
    return f"""document.querySelector("#feature[data-latent='{latent}'][data-ready=yes]") !== null"""


def window_text(page, place):
    return page.do(f"""[...document.querySelectorAll(".window")][{place}].querySelector(".text").textContent""")


def shown(text):
    return text.replace("\n", "↵\n").replace("\t", "⇥\t").replace("\r", "␍")


def index(page, expected):
    seen = facts(page)
    assert number(seen["tokens seen"]) == expected["tokens"], seen
    assert number(seen["latents"]) == expected["n"], seen
    close(number(seen["L0"]), expected["l0"])
    dead = sum(f["count"] == 0 for f in expected["features"])
    assert seen["never active"].startswith(f"{dead:,} "), seen
    assert page.do("""document.querySelectorAll("#view > svg .bar").length""") > 0
    drawn = page.do("""[...document.querySelectorAll("#view > svg .bar title")].map((t) => Number(t.textContent.match(/: ([\\d,]+) latents/)[1].replace(/,/g, "")))""")
    assert sum(drawn) == expected["n"] - dead, drawn
    # The most frequent come first.
    order = sorted(expected["features"], key=lambda f: (-f["count"], f["latent"]))
    rows = page.do("""[...document.querySelectorAll("#rows a")].map((a) => [...a.children].map((s) => s.textContent))""")
    for row, feature in zip(rows, order):
        assert int(row[0]) == feature["latent"] and row[1] == feature["label"], (row, feature)
        if feature["count"]:
            close(percent(row[2]), feature["count"] / expected["tokens"])
        close(float(row[3]), feature["largest"], 1e-3)
    # By label: those that have one, in order.
    page.click("#list .head button[data-key=label]")
    labelled = page.do("""[...document.querySelectorAll("#rows a")].map((a) => a.children[1].textContent).filter(Boolean)""")
    assert sorted(f["label"] for f in order if f["label"])[0] in labelled and rows, labelled
    page.click("#list .head button[data-key=count]")


def search(page, expected):
    """Finds by a word of a label, goes down the list and into a feature by keys alone, and back."""
    feature = next(f for f in expected["features"] if f["label"])
    page.do("""document.getElementById("search").focus()""")
    page.type(feature["label"].split()[0].upper())
    page.until("""document.getElementById("found").textContent.includes(" of ")""")
    rows = page.do("""[...document.querySelectorAll("#rows a")].map((a) => Number(a.children[0].textContent))""")
    assert feature["latent"] in rows, rows
    for _ in range(8):
        page.key("Tab")
        if page.do("""document.activeElement.dataset.place"""):
            break
    else:
        raise AssertionError("the keyboard does not reach the list")
    page.do("""document.getElementById("search").value = ""; document.getElementById("search").dispatchEvent(new Event("input"))""")
    page.do("""document.querySelector("#rows a").focus()""")
    page.key("ArrowDown"), page.key("ArrowDown"), page.key("ArrowUp")
    assert page.do("document.activeElement.dataset.place") == "1"
    page.key("End")
    assert page.do("document.activeElement.dataset.place") == str(expected["n"] - 1)
    page.key("Home"), page.key("Enter")
    page.until("location.hash.startsWith('#/f/')")


def feature(page, expected, screenshots):
    for known in expected["features"]:
        if not known["check"]:
            continue
        go(page, f"#/f/{known['latent']}", feature_ready(known["latent"]))
        seen = facts(page)
        assert number(seen["tokens"]) == known["count"], (seen, known)
        close(float(seen["largest"]), known["max"], 1e-3), close(float(seen["smallest"]), known["min"], 1e-3)
        title = page.do("document.querySelector('h1').textContent")
        assert title == (known["label"] or f"Feature {known['latent']}"), title
        counted = page.do("""[...document.querySelector("#feature .panels section").querySelectorAll("svg .bar title")].map((t) =>
            Number(t.textContent.match(/: ([\\d,]+) tokens/)[1].replace(/,/g, ""))).reduce((a, b) => a + b, 0)""")
        assert counted == known["histogram"], (counted, known)
        for place, window in enumerate(known["top"][:5]):
            assert window_text(page, place) == "".join(map(shown, window["tokens"])), place
            at = page.do(f"""[...document.querySelectorAll(".window")][{place}].querySelector(".at").dataset.told""")
            close(float(at.split()[0]), window["value"], 1e-3)
            assert f"position {window['position']}," in at, at
        moments = page.do("""[...document.querySelectorAll("table")][0].innerText""")
        assert "kurtosis" in moments
        assert page.do("""document.querySelectorAll("#feature .panels table").length""") >= (4 if known["count"] else 2), "a lens and neighbours"
        if len(known["top"]) > 5:
            before = page.do("""document.querySelectorAll(".window").length""")
            page.click("#feature section > button")
            assert page.do("""document.querySelectorAll(".window").length""") == before + len(known["top"]) - 5
        if known["count"]:
            page.click(".window .at")
            assert "position" in page.do("document.getElementById('told').textContent")
    page.click(".bar-of-buttons button:last-child")
    page.until(f"""location.hash !== '#/f/{[f for f in expected["features"] if f["check"]][-1]["latent"]}'""")


def prompt(page, expected):
    go(page, "#/prompt/0", "document.getElementById('prompt') !== null")
    known = expected["prompt"]
    assert page.do("document.getElementById('prompt').textContent") == "".join(map(shown, known["tokens"]))
    token = max(range(len(known["on"])), key=lambda t: len(known["on"][t]))
    page.click(f"#prompt [data-token='{token}']")
    page.until("document.querySelectorAll('#on-token tr').length > 0")
    listed = page.do("""[...document.querySelectorAll("#on-token section:first-child tr")].slice(1).map((r) => [r.querySelector("a").textContent, r.children[1].textContent])""")
    assert len(listed) == min(12, len(known["on"][token]))
    for (latent, value), (known_latent, known_value) in zip(listed, known["on"][token]):
        assert int(latent) == known_latent, (listed, known["on"][token])
        close(float(value.split()[0]), known_value, 1e-3)
    page.click("#on-token section:first-child td a")
    page.until(f"location.hash.startsWith('#/prompt/0/{known['on'][token][0][0]}/')")
    page.until("document.querySelector('#view p').textContent.startsWith('coloured by')")
    coloured = page.do("""[...document.querySelectorAll("#prompt .token")].map((t, i) => t.style.backgroundColor ? i : -1).filter((i) => i >= 0)""")
    latent = known["on"][token][0][0]
    assert coloured == [t for t, on in enumerate(known["on"]) if any(l == latent for l, _ in on)], coloured


def sound(page, folder):
    """Nothing went wrong, nothing moved by itself, no text became a script, nothing was asked for from elsewhere."""
    assert page.faults == [], page.faults
    assert page.do("window.hacked") == 0, "a text was taken for a script"
    assert page.do("window.shifts") == [], f"the page moved by itself: {page.do('window.shifts')}"
    assert page.do("document.querySelectorAll('main img, main script, main iframe, main style').length") == 0
    holes = page.do("document.body.innerText.match(/\\b(null|undefined|NaN|Infinity)\\b/)")
    assert holes is None, holes
    strange = [url for url in page.asked if not url.startswith((folder.as_uri(), "data:", "about:"))]
    assert strange == [], strange
    wide = page.do("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the window"


def main():
    folder, expected = Path(sys.argv[1]).resolve(), json.loads(Path(sys.argv[2]).read_text())
    screenshots = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    page = Chromium()
    try:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        for width, height, phone, dark in ((1200, 900, False, False), (390, 844, True, True)):
            name = "phone-dark" if phone else "desk-light"

            def look(what):
                sound(page, folder)
                if screenshots:
                    os.makedirs(screenshots, exist_ok=True)
                    page.screenshot(screenshots / f"{what}-{name}.png")

            page.window(width, height, phone, dark)
            start = time.monotonic()
            page.call("Page.navigate", url=(folder / "index.html").as_uri() + ("?phone" if phone else ""))
            page.until("document.querySelectorAll('#rows a').length > 0")
            print(f"{name}: first view of {expected['n']} features after {time.monotonic() - start:.2f} s")
            index(page, expected), look("index")
            search(page, expected), look("search")
            feature(page, expected, screenshots)
            checked = [f for f in expected["features"] if f["check"]]
            go(page, f"#/f/{checked[0]['latent']}", feature_ready(checked[0]["latent"]))
            look("feature")
            prompt(page, expected), look("prompt")
            go(page, "#/f/999999999", "document.querySelector('h1').textContent === 'No such feature'")
            go(page, "#/prompt/999", "document.querySelector('h1').textContent === 'No such prompt'")
            go(page, "#/", "document.querySelectorAll('#rows a').length > 0")
            sound(page, folder)
    finally:
        page.close()


if __name__ == "__main__":
    main()
