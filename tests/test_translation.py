"""README_zh.md says what README.md says: the same headings, commands, links and numbers."""

import re

from tests.documents import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README_zh.md").read_text(encoding="utf-8")


def headings(page: str) -> list[int]:
    """The levels of all headings, in order."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    return [len(marks) for marks in re.findall(r"^(#+) ", prose, re.M)]


def sections(page: str) -> list[str]:
    return re.split(r"^#+ ", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), flags=re.M)


def test_headings_are_the_same():
    assert headings(ENGLISH) == headings(CHINESE)


def test_code_is_the_same_to_the_letter():
    blocks = [re.findall(r"^```.*?^```$", page, re.M | re.S) for page in (ENGLISH, CHINESE)]
    assert blocks[0] == blocks[1] and len(blocks[0]) >= 8


def test_what_stands_in_code_marks_is_the_same():
    for english, chinese in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        quoted = [
            sorted(" ".join(q.split()) for q in re.findall(r"`([^`]+)`", s))
            for s in (english, chinese)
        ]
        assert quoted[0] == quoted[1]


def test_numbers_are_the_same_in_each_section():
    for english, chinese in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        numbers = [
            sorted(re.findall(r"(?<![A-Za-z0-9.])\d+(?:[.,]\d+)*", s)) for s in (english, chinese)
        ]
        assert numbers[0] == numbers[1]


def test_links_and_pictures_are_the_same():
    links = [sorted(re.findall(r"\]\(([^)]+)\)", page)) for page in (ENGLISH, CHINESE)]
    others = {"README.md", "README_zh.md"}
    assert [x for x in links[0] if x not in others] == [x for x in links[1] if x not in others]
