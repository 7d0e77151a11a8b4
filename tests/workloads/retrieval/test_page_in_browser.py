import re
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from browser import started
from page_index import TEXTS, found, made, without_words

from farreach_workloads.retrieval import page


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    return made(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(searcher):
    with page.served(searcher) as address:
        yield address


@pytest.fixture(scope="module")
def the_browser():
    with started() as browser:
        yield browser


@pytest.fixture
def browser(the_browser, address):
    """With the empty page, and nothing to complain of at the end."""
    the_browser.size(1400, 900)
    assert the_browser.open(address)
    the_browser.until("document.activeElement.id === 'q'")
    the_browser.messages(True)
    yield the_browser
    assert the_browser.messages() == []


def test_what_is_typed_is_found_in_three_columns(browser, searcher, tmp_path):
    assert "press Enter" in browser.note()
    browser.type("disk folder")
    browser.press("Return")
    browser.has("of 6 documents found")
    assert browser.ask("location.search") == "?q=disk+folder"
    assert browser.ask("document.title").startswith("disk folder – small <index>")
    columns = browser.texts("section h2")
    assert [text.split()[0] for text in columns] == ["Dense", "BM25", "Hybrid"]
    for mode in page.COLUMNS:
        expected = searcher.search(["disk folder"], 6, mode=mode)[0]
        inside = f"section[aria-labelledby=of-{mode}]"
        assert browser.texts(f"{inside} .title") == [hit.title or hit.id for hit in expected]
        assert browser.texts(f"{inside} .rank") == [str(hit.rank) for hit in expected]
        assert browser.texts(f"{inside} .score") == [f"{hit.score:.4f}" for hit in expected]
    bars = browser.ask(
        "[...document.querySelectorAll('section:nth-child(2) .bar div')]"
        ".map(e => e.offsetWidth / e.parentElement.offsetWidth)"
    )
    scores = [hit.score for hit in searcher.search(["disk folder"], 6, mode="lexical")[0]]
    assert bars == pytest.approx(np.array(scores) / scores[0], abs=0.01)
    marks = browser.texts("section:nth-child(2) mark")
    assert sorted(marks) == ["Disk", "disk", "disk", "disk", "folder"]
    picture = tmp_path / "page.png"
    assert browser.picture(str(picture))
    with Image.open(picture) as image:
        assert image.size == (1400, 900)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_an_address_with_a_query_is_a_link_and_back_goes_back(browser, address):
    browser.open(f"{address}?q=sound&k=2&where=section+%3D+%27sound%27")
    browser.has("found")
    assert browser.ask("['q', 'k', 'where'].map(id => document.getElementById(id).value)") == [
        "sound",
        "2",
        "section = 'sound'",
    ]
    assert len(browser.texts("section:first-child .hit")) == 2
    browser.clear("q")
    browser.type("disk")
    browser.press("Return")
    browser.until("location.search.startsWith('?q=disk')")
    browser.until("document.getElementById('note').textContent.includes('found')")
    browser.ask("history.back()")
    browser.until("document.getElementById('q').value === 'sound'")
    browser.until("document.querySelector('section:nth-child(2) mark')?.textContent === 'Sound'")


def test_hostile_texts_are_shown_and_not_run(browser, address):
    evil = "<b id=mine>hostile</b><script>document.title='taken'</script>"
    query = urlencode({"q": evil, "where": "id = 'evil'"})
    browser.open(f"{address}?{query}")
    browser.has("1 of 6 documents found")
    assert browser.text("section:nth-child(2) .title") == TEXTS["evil"][0]
    assert browser.text("section:nth-child(2) .snippet") == TEXTS["evil"][1]
    assert browser.ask("document.querySelectorAll('main img, main script, #mine').length") == 0
    assert browser.ask("document.title").startswith(evil)
    assert "hostile" in browser.texts("section:nth-child(2) mark")


def test_a_policy_keeps_scripts_out_that_got_in(the_browser, address):
    the_browser.open(address)
    the_browser.messages(True)
    the_browser.ask(
        "(() => { const e = document.createElement('script'); e.textContent = 'window.ran = 1';"
        "document.body.append(e); return 1 })()"
    )
    assert the_browser.ask("window.ran === undefined")
    assert ["Content Security Policy" in text for text in the_browser.messages(True)] == [True]


def test_errors_and_empty_results_say_what_to_do(browser, address):
    browser.open(f"{address}?q=disk&where=section+is")
    browser.until("document.getElementById('note').className === 'wrong'")
    assert browser.note() == found(address, q="disk", where="section is")[1]["error"]
    assert browser.ask("document.getElementById('note').getAttribute('role')") == "alert"
    assert browser.texts(".hit") == []
    browser.clear("where")
    browser.type("section = 'none'")
    browser.press("Return")
    browser.has("Nothing is found for “disk” with this filter in 6 documents")
    assert browser.ask("document.getElementById('note').getAttribute('role')") == "status"
    assert browser.texts("section p") == ["Nothing fits query and filter."] * 3


def test_an_index_without_words_says_how_to_get_them(the_browser, searcher):
    with page.served(without_words(searcher)) as address:
        the_browser.open(f"{address}?q=disk")
        the_browser.has("6 of 6 documents found")
    assert len(the_browser.texts("section:first-child .hit")) == 6
    messages = the_browser.texts("section:not(:first-child) p")
    assert len(messages) == 2
    assert all("lexical=true" in message for message in messages)
    assert "only here" not in the_browser.text("main")


def test_a_server_that_is_gone_is_told_of_until_it_is_back(the_browser, searcher):
    browser = the_browser
    with page.served(searcher) as address:
        browser.open(address)
        browser.until("document.activeElement.id === 'q'")
    browser.type("disk")
    browser.press("Return")
    browser.has("The server does not answer")
    with page.served(searcher, urlsplit(address).port):
        browser.ask("document.querySelector('#note button').focus()")
        browser.press("Space")
        browser.has("of 6 documents found")


def test_a_late_answer_does_not_replace_a_newer_one(browser, searcher, monkeypatch):
    search, released = searcher.search, threading.Event()

    def slow(queries, *arguments, **settings):
        if queries == ["sound"]:
            released.wait(60)
        return search(queries, *arguments, **settings)

    monkeypatch.setattr(searcher, "search", slow)
    browser.type("sound")
    browser.press("Return")
    browser.has("Searching")
    browser.clear("q")
    browser.type("disk")
    browser.press("Return")
    browser.until("document.title.startsWith('disk')")  # it asks for that now
    released.set()  # searches are made one after the other
    browser.has("found")
    time.sleep(0.3)
    assert set(browser.texts("section:nth-child(2) mark")) == {"disk", "Disk"}


ACTIVE = (
    "[document.activeElement.closest('section')?.getAttribute('aria-labelledby'),"
    " document.activeElement.dataset.id].join(' ')"
)


def test_it_works_without_a_mouse(browser):
    browser.type("disk")
    for _ in range(3):
        browser.press("Tab")  # filter, number, button
    browser.press("Space")
    browser.has("found")
    columns = [
        browser.ask(f"[...document.querySelectorAll('{column} .hit')].map(e => e.dataset.id)")
        for column in ("section:nth-child(1)", "section:nth-child(2)")
    ]
    browser.press("Tab")
    browser.until(f"{ACTIVE} === 'of-dense {columns[0][0]}'")
    marked = browser.ask("[...document.querySelectorAll('.same')].map(e => e.dataset.id)")
    assert set(marked) == {columns[0][0]}
    assert len(marked) >= 2
    for name in columns[0][1:]:
        browser.press("Down")
        browser.until(f"{ACTIVE} === 'of-dense {name}'")
    browser.press("Down")  # the last one stays
    for name in columns[0][-2 : columns[0].index("umount") - 1 : -1]:
        browser.press("Up")
        browser.until(f"{ACTIVE} === 'of-dense {name}'")
    for column in ("of-lexical", "of-hybrid"):
        browser.press("Right")
        browser.until(f"{ACTIVE} === '{column} umount'")
    browser.press("Tab")  # the button that leads to the first other column
    browser.until("document.activeElement.tagName === 'BUTTON'")
    browser.press("Return")
    browser.until(f"{ACTIVE} === 'of-dense umount'")


def test_from_a_document_that_is_in_one_column_one_goes_to_the_same_place(browser):
    browser.type("disk")
    browser.press("Return")
    browser.has("found")
    ids = [
        browser.ask(f"[...document.querySelectorAll('{column} .hit')].map(e => e.dataset.id)")
        for column in ("section:nth-child(1)", "section:nth-child(2)")
    ]
    place = next(i for i, name in enumerate(ids[0]) if name not in ids[1])
    browser.ask(f"document.querySelectorAll('section:first-child .hit')[{place}].focus()")
    browser.press("Right")
    browser.until(f"{ACTIVE} === 'of-lexical {ids[1][min(place, len(ids[1]) - 1)]}'")


def test_pointing_at_a_document_marks_it_in_all_columns(browser):
    browser.type("disk")
    browser.press("Return")
    browser.has("found")
    shared = browser.ask(
        "[...document.querySelectorAll('section:nth-child(2) .hit')].map(e => e.className)"
    )
    assert all("shared" in kind for kind in shared)
    x, y = browser.ask(
        "(r => [r.x + r.width / 2, r.y + 8])("
        "document.querySelector('section:nth-child(2) [data-id=mount]').getBoundingClientRect())"
    )
    browser.point(x, y)
    browser.until("document.querySelectorAll('.same').length === 3")
    assert (
        browser.ask("[...document.querySelectorAll('.same')].map(e => e.dataset.id)")
        == ["mount"] * 3
    )
    browser.point(5, 5)
    browser.until("document.querySelectorAll('.same').length === 0")


def test_columns_stack_where_it_is_narrow(browser, address):
    browser.open(f"{address}?q=disk")
    browser.has("found")
    lefts = "new Set([...document.querySelectorAll('section')].map(e => e.offsetLeft)).size"
    assert browser.ask(lefts) == 3
    browser.size(400, 800)
    browser.until("innerWidth === 400")
    assert browser.ask(lefts) == 1
    assert browser.ask("document.documentElement.scrollWidth") <= 400


def luminance(colour):
    """Of rgb(r, g, b), after WCAG 2.2."""
    rgb = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrasts(browser, address):
    """Of the page's texts with what is behind them."""
    browser.open(f"{address}?q=disk")
    browser.has("found")
    pairs = browser.ask(
        "['h1', 'h1 small', '#note', '.title', '.score', '.snippet', 'mark', '.also', 'label',"
        " 'form button'].map(name => { let e = document.querySelector(name), b = e;"
        " while (/, 0\\)$/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;"
        " return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor] })"
    )
    levels = [sorted((luminance(one), luminance(two))) for one, two in pairs]
    return [(high + 0.05) / (low + 0.05) for low, high in levels], luminance(pairs[0][1])


def test_light_and_dark_can_both_be_read(browser, address):
    light, ground = contrasts(browser, address)
    assert min(light) >= 4.5
    assert ground > 0.5
    with started("dark") as dark:
        values, ground = contrasts(dark, address)
    assert min(values) >= 4.5
    assert ground < 0.1
    assert not np.allclose(light, values)
