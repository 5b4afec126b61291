"""docs/sort.js in a real browser: the leaderboard sorted by a click on a header."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browser

SCRIPT = Path(__file__).parents[2] / "docs" / "sort.js"
ROWS = (
    ("krum", "9.5 ± 1.0", "b, iid"),
    ("rfa", "100.0", "a, iid"),
    ("afa", "-", "c, iid"),
    ("dnc", "20.1 ± 3.0", "a, x"),
)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")
def test_a_click_sorts_by_numbers_and_by_texts(tmp_path: Path) -> None:
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in ROWS)
    head = "<thead><tr><th>defense</th><th>worst</th><th>by</th></tr></thead>"
    page = tmp_path / "page.html"
    page.write_text(
        f"<meta charset='utf-8'><article><table>{head}<tbody>{body}</tbody></table></article>"
        f"<script>{SCRIPT.read_text()}</script>"
    )
    with browser(tmp_path / "profile") as opened:
        opened.open(page)
        assert click(opened, 1) == ["krum", "dnc", "rfa", "afa"]  # what is no number comes last
        assert click(opened, 1) == ["afa", "rfa", "dnc", "krum"]
        assert click(opened, 0) == ["afa", "dnc", "krum", "rfa"]
        assert click(opened, 2) == ["rfa", "dnc", "krum", "afa"]
        assert opened.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1


def click(page: Page, column: int) -> list[str]:
    """The first column's texts after a click on a header."""
    page.evaluate(f"document.querySelectorAll('th')[{column}].click()")
    texts: list[str] = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)")
    return texts
