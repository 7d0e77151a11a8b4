"""Sections of documentation: headings and the text below them, of HTML and of Perl's pod."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


HEADINGS = _names("h1 h2 h3 h4 h5 h6")
BLOCKS = _names(
    "article blockquote br dd div dl dt figure hr li ol p pre section table td th tr ul"
)
SILENT_TAGS = _names("head script style nav footer")
# What Sphinx and DocBook put around the text: menus, tables of contents, signs for links.
SILENT_CLASSES = _names(
    "sphinxsidebar related headerlink toc navheader navfooter contents toctree-wrapper footer "
    "mobile-nav indexterm"
)
# Boxes whose own headings do not begin a section.
BOXES = _names("note tip warning caution important sidebar")
EMPTY = _names("area base br col embed hr img input link meta source track wbr")

POD_COMMAND = re.compile(r"=([a-zA-Z]\w*)\s*(.*)", re.DOTALL)
POD_CODE = re.compile(r"([A-Z])(?:<<+\s+((?:(?![A-Z]<).)*?)\s+>>+|<([^<>]*)>)", re.DOTALL)
POD_ESCAPES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}
# Stand for angle brackets of the text while those of codes are looked for.
HELD = str.maketrans("<>", "\ue000\ue001")
RELEASED = str.maketrans("\ue000\ue001", "<>")


@dataclass(frozen=True)
class Section:
    """A heading and what follows up to the next one, of whatever depth.

    Attributes:
        anchor: what a link to the heading names, or empty.
        text: paragraphs, list items and verbatim blocks; a new line begins each.
    """

    anchor: str
    heading: str
    text: str


def html_sections(page: str) -> list[Section]:
    """The sections of a page of HTML; what is above the first heading is one without heading."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.finished()


def pod_sections(pod: str) -> list[Section]:
    """The sections of a page of Perl's documentation format (perlpod)."""
    sections: list[Section] = []
    heading, parts, is_hidden = "", [""], False
    for block in re.split(r"\n(?:[ \t]*\n)+", pod):
        command = POD_COMMAND.fullmatch(block.strip())
        if command is None:
            if not is_hidden:
                parts.append(block if block.startswith((" ", "\t")) else _pod_line(block))
            continue
        name, rest = command.groups()
        if name in ("begin", "end"):
            is_hidden = name == "begin"
        elif name.startswith("head"):
            sections.append(Section("", heading, _joined(parts)))
            heading, parts = _pod_line(rest), []
        elif name == "item":
            parts.append(_pod_line(rest))
    return [*sections, Section("", heading, _joined(parts))]


def passages(text: str, most_words: int) -> Iterator[str]:
    """Cut a text at ends of lines into parts of at most so many words; longer lines at a word."""
    part: list[str] = []
    count = 0
    for line in text.split("\n"):
        words = line.split()
        if part and count + len(words) > most_words:
            yield "\n".join(part)
            part, count = [], 0
        while len(words) > most_words:
            yield " ".join(words[:most_words])
            words = words[most_words:]
            line = " ".join(words)
        part.append(line)
        count += len(words)
    if count:
        yield "\n".join(part)


class _Reader(HTMLParser):
    """Collects sections while the parser goes through a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._sections: list[Section] = []
        self._parts: list[str] = []
        self._heading = self._anchor = self._next_anchor = ""
        self._heading_parts: list[str] | None = None
        self._silent: list[str] = []  # open tags from the silent one on
        self._verbatim = 0
        self._is_boxed = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        classes = (given.get("class") or "").split()
        if self._silent:
            if tag == self._silent[0]:
                self._silent.append(tag)
            return
        if tag in SILENT_TAGS or not SILENT_CLASSES.isdisjoint(classes):
            if tag not in EMPTY:
                self._silent.append(tag)
            return
        anchor = given.get("id") or (given.get("name") if tag == "a" else None)
        self._next_anchor = self._next_anchor or anchor or ""
        self._is_boxed = self._is_boxed or not BOXES.isdisjoint(classes)
        if tag in HEADINGS and not self._is_boxed:
            self._end_section()
            self._heading_parts = []
        elif tag in BLOCKS or tag in HEADINGS:
            self._write("\n")
            self._verbatim += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag == self._silent[0]:
                self._silent.pop()
            return
        if tag in HEADINGS and self._heading_parts is not None:
            self._heading = " ".join("".join(self._heading_parts).split())
            self._anchor, self._next_anchor = self._next_anchor, ""
            self._heading_parts = None
        elif tag in BLOCKS or tag in HEADINGS:
            self._is_boxed = self._is_boxed and tag not in HEADINGS
            self._write("\n")
            self._verbatim = max(0, self._verbatim - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if data.strip() and self._heading_parts is None:
            self._next_anchor = ""
        if self._verbatim:
            self._write(data)
            return
        text = re.sub(r"\s+", " ", data)
        if self._heading_parts is None and self._parts and self._parts[-1][-1:].isspace():
            text = text.lstrip()
        self._write(text)

    def finished(self) -> list[Section]:
        self._end_section()
        return [section for section in self._sections if section.heading or section.text]

    def _write(self, text: str) -> None:
        (self._parts if self._heading_parts is None else self._heading_parts).append(text)

    def _end_section(self) -> None:
        lines = "".join(self._parts).split("\n")
        text = _joined(lines)
        self._sections.append(Section(self._anchor, self._heading, text))
        self._parts, self._heading, self._anchor = [], "", ""


def _joined(parts: list[str]) -> str:
    lines = (line.rstrip() for part in parts for line in part.split("\n"))
    return "\n".join(
        line if line.startswith("  ") else line.strip() for line in lines if line.strip()
    )


def _pod_line(block: str) -> str:
    """A paragraph as one line without formatting codes, which are replaced from inside out."""
    text = " ".join(block.split())
    while (found := POD_CODE.search(text)) is not None:
        inner = found[2] if found[2] is not None else found[3]
        text = text[: found.start()] + _pod_text(found[1], inner) + text[found.end() :]
    return text.translate(RELEASED).strip()


def _pod_text(code: str, inner: str) -> str:
    if code == "E":
        return POD_ESCAPES.get(inner, "").translate(HELD)
    if code in "XZ":
        return ""
    if code == "L":
        name, bar, target = inner.partition("|")
        if not bar and "://" not in inner:
            page, _, section = name.partition("/")
            return (section.strip('"') or page).translate(HELD)
        return (name if bar else inner or target).translate(HELD)
    return inner.translate(HELD)
