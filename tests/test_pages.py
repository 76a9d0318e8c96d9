"""Pages in a real browser: nothing fails, nobody is called, tables sort, and the keyboard reaches everything."""

import numpy as np
import pytest
from browser import find_browser, open_browser
from servers import running
from test_cards import make_records
from zoo import make_image

from frostline.evidence.figures.sheets import suspects as draw_gallery
from frostline.evidence.predictions import Predictions
from frostline.evidence.report import Findings, Side, make_comparison, make_report
from frostline.evidence.suspicion import Suspect
from frostline.images.decisions import load_history
from frostline.params import parse_params
from frostline.serving.review import Card, Review, ReviewServer

WIDTHS = (390, 1280)  # a telephone's, and a small laptop's
# What a person could want to act on, and whether it is seen.
REACHABLE = "[...document.querySelectorAll('a[href], button, select')].filter(e => e.getClientRects().length)"
NO_WIDER = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture
def page(tmp_path):
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium or Chrome on the path: apt-get install chromium")
    with open_browser(program, tmp_path / "profile") as found:
        yield found


@pytest.fixture
def report(params_document, tmp_path):
    """A report of made-up records, with real figures."""
    records = make_records(class_names=("cat", "dog", "a|b <i>"))
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    probabilities = rng.dirichlet([1, 1, 1], 240) + 1.5 * np.eye(3)[labels]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    files = tuple(f"a very long folder name/that does not end/{index}.jpg" for index in range(240))
    predictions = Predictions(files, labels, probabilities, records.class_names, "test")
    suspects = [Suspect(files[n], "train", "cat", "dog", n / 100, 0.9 - n / 100, n / 100, n < 12) for n in range(30)]
    figures = [tmp_path / f"{name}.png" for name in ("suspicious", "mistakes")]
    for figure in figures:
        images = np.stack([make_image(n, 48, 48) for n in range(6)])
        draw_gallery(images, [("is a", "like b", f"{n}.jpg") for n in range(6)], figure)
    html = make_report(records, parse_params(params_document), Findings(predictions, suspects, figures))
    path = tmp_path / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def test_a_report_opens_whole_in_any_width_and_light(page, report):
    for dark in (False, True):
        page.dark(dark)
        for width in WIDTHS:
            page.size(width, 900)
            page.open(report.as_uri())
            assert page.errors == []
            assert page.run("[...document.images].length") == 2
            assert page.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert page.run(NO_WIDER), f"wider than {width} pixels"
        back = page.run("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert {address.split(":")[0] for address in page.asked} <= {"file", "data"}


def test_tables_sort_by_a_click_and_by_the_keyboard(page, report):
    page.size(1280, 900)
    page.open(report.as_uri())
    heads = page.run("[...document.querySelectorAll('#labels th')].map(h => h.textContent)")
    place = heads.index("with")
    before = page.run(f"[...document.querySelectorAll('#labels tbody tr')].map(r => r.cells[{place}].textContent)")
    assert before == sorted(before, key=float)
    button = f"document.querySelectorAll('#labels th button')[{place}]"
    read = f"[...document.querySelectorAll('#labels tbody tr')].map(r => r.cells[{place}].textContent)"
    page.run(f"{button}.click()")
    assert page.run(read) == before
    assert page.run(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"
    page.run(f"{button}.focus()")
    page.press("Enter")
    assert page.run(read) == before[::-1]
    assert page.run(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"
    # Numbers as numbers: rank 10 does not stand beside rank 1.
    rank = "document.querySelectorAll('#labels th button')[0]"
    page.run(f"{rank}.click()")
    ranks = page.run("[...document.querySelectorAll('#labels tbody tr')].map(r => r.cells[0].textContent)")
    assert ranks == [str(number) for number in range(1, 13)]


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page, report):
    page.size(1280, 900)
    page.open(report.as_uri())
    number = page.run(f"{REACHABLE}.length")
    assert number > 30
    reached = set()
    for _ in range(number + 20):  # and what scrolls
        page.press("Tab")
        place = page.run(f"{REACHABLE}.indexOf(document.activeElement)")
        if place >= 0:
            reached.add(place)
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == set(range(number))


def test_a_comparison_opens_whole(page, tmp_path):
    records = make_records()
    sides = [Side(f"version {n}", str(n) * 32, records.evaluation, records.refit) for n in (1, 2)]
    flip = {
        "kind": "broken",
        "file": "x.jpg",
        "label": "cat",
        "before": "cat",
        "p_before": 0.5,
        "after": "dog",
        "p_after": 0.6,
    }
    path = tmp_path / "comparison.html"
    path.write_text(make_comparison(*sides, "Nothing changed.", [flip]), encoding="utf-8")
    for width in WIDTHS:
        page.size(width, 900)
        page.open(path.as_uri())
        assert page.errors == [] and page.run(NO_WIDER)
    assert page.run("document.querySelectorAll('tbody tr').length") > 10


def serving(review):
    return running(ReviewServer(review, "2 of 9 labels look wrong.", 0))


def test_decisions_are_made_by_mouse_and_by_keyboard(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cards = [
        Card(Suspect(f"cats/{n}.png", "train", "cats", "dogs", 0.1, 0.8, 0.2, True), "cats", "", None) for n in range(4)
    ]
    review = Review(cards, ["birds", "cats", "dogs"], "anna", lambda row: make_image(row, 48, 48))
    said = "document.getElementById('status').textContent"
    with serving(review) as server:
        for width in WIDTHS:
            page.size(width, 900)
            page.open(server.address)
            page.wait("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert page.run(NO_WIDER)
        page.run("document.querySelector('[data-row=\"0\"] [data-decision=drop]').click()")
        page.wait(f"{said}.includes('cats/0.png: dropped')")
        page.run("document.querySelector('[data-row=\"1\"] button').focus()")
        page.press("s")  # the suggestion, and on to the next card
        page.wait(f"{said}.includes('cats/1.png: is dogs')")
        page.press("k")
        page.wait(f"{said}.includes('cats/2.png: is cats')")
        page.run(
            "(e => { e.value = 'birds'; e.dispatchEvent(new Event('change')) })(document.querySelector('[data-row=\"3\"] select'))"
        )
        page.wait(f"{said}.includes('4 of 4 decided')")
        page.open(server.address)
        pressed = page.run("[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.textContent)")
        assert pressed == ["Drop", "It is dogs", "Keep"]
        assert page.run("document.querySelector('[data-row=\"3\"] select').value") == "birds"
        number = page.run(f"{REACHABLE}.length")
        reached = set()
        for _ in range(number + 2):
            page.press("Tab")
            reached.add(page.run(f"{REACHABLE}.indexOf(document.activeElement)"))
        assert set(range(number)) <= reached
        assert page.errors == []
        history = load_history()
        (tmp_path / "decisions.csv").unlink()
        (tmp_path / "decisions.csv").mkdir()  # it cannot be written
        page.run("document.querySelector('[data-row=\"0\"] [data-decision=keep]').click()")
        page.wait(f"{said}.includes('Not written')")
    assert [(row.image_id, row.decision, row.label) for row in history] == [
        ("cats/0.png", "drop", ""),
        ("cats/1.png", "relabel", "dogs"),
        ("cats/2.png", "keep", ""),
        ("cats/3.png", "relabel", "birds"),
    ]
