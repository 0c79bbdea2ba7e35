"""A page as a reader finds it: its tables, sections and links, taken from the HTML."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br", "path", "use"}


class Page(HTMLParser):
    """Reads a page.

    tables: name -> rows of texts, the header first. texts: of everything a reader sees. ids: of all elements. links:
    what src and href say. tags, attributes: of all elements. best: name of a table -> what is marked as the best of a
    column. captions: of tables and drawings, by the element's id.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, list[list[str]]] = {}
        self.best: dict[str, list[str]] = {}
        self.captions: dict[str, str] = {}
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.figure = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.attributes.update(values)
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag == "figure" and values.get("id"):
            self.figure = values["id"] or ""
        if tag == "tr" and self.figure.startswith("table-"):
            self.tables.setdefault(self.figure[6:], []).append([])
        if tag in ("td", "th"):
            self.tables[self.figure[6:]][-1].append("")
        if tag not in VOID:
            self.open.append((tag, values))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "script" in tags or "style" in tags:
            return
        self.texts.append(data)
        if "figcaption" in tags and self.figure:
            self.captions[self.figure] = self.captions.get(self.figure, "") + data
        cell = next((values for tag, values in reversed(self.open) if tag in ("td", "th")), None)
        if cell is not None:
            self.tables[self.figure[6:]][-1][-1] += data
            if "best" in (cell.get("class") or "").split() and data.strip() and tags[-1] in ("td", "th"):
                self.best.setdefault(self.figure[6:], []).append(data.strip())

    @property
    def text(self) -> str:
        """All that a reader sees, in one line."""
        return " ".join("".join(self.texts).split())

    def rows(self, table: str) -> list[dict[str, str]]:
        """The rows of a table, by the titles of its columns; of columns with one title the first."""
        *_, header = [row for row in self.tables[table] if row and row[0].strip() in ("model", "class")]
        body = self.tables[table][self.tables[table].index(header) + 1 :]
        rows = []
        for line in body:
            row: dict[str, str] = {}
            for title, cell in zip(header, line, strict=True):
                row.setdefault(title.strip(), " ".join(cell.split()))
            rows.append(row)
        return rows
