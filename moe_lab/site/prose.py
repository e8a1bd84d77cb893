"""Markdown to HTML by nbconvert's own parser, with headings that have a place and links that stay on the site."""

import html
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, get_lexer_by_name
from pygments.util import ClassNotFound

from moe_lab.site.links import follow, relative, site_path

OUTSIDE = re.compile(r"[a-z]+:")


@dataclass
class Heading:
    """A heading of a page, and the words below it up to the next one, for the search."""

    level: int
    title: str
    anchor: str
    text: list[str] = field(default_factory=list)


def anchor_of(title: str) -> str:
    """The anchor that a heading gets, by the rule that repositories on the web use.

    Example:
        >>> anchor_of("2 · Measures of a `load`, by hand")
        '2--measures-of-a-load-by-hand'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


class Prose(IPythonRenderer):
    """Renders the Markdown of one page; collects its headings, and refuses what the page could not show.

    Raises ValueError for a formula in LaTeX, which would need a script from elsewhere, and for a link to an anchor
    alone that leads nowhere (see `dangling`).
    """

    def __init__(self, root: Path, source: str, pages: Collection[str]):
        super().__init__(escape=False, embed_images=True, exclude_anchor_links=True, path=str((root / source).parent))
        self.source, self.pages = source, pages
        self.headings: list[Heading] = []
        self.links: list[tuple[str, str]] = []  # (page, anchor) on the site, to be held against what is there
        self._seen = Counter()
        self._markdown = MarkdownWithMath(self)

    def read(self, text: str) -> str:
        """HTML of a piece of Markdown."""
        return self._markdown.render(text)

    def heading(self, text: str, level: int, **attributes) -> str:
        """A heading with an anchor of its own, and a link to it that a mouse finds."""
        title = html.unescape(re.sub(r"<[^>]+>", "", text))
        anchor = anchor_of(title)
        self._seen[anchor] += 1
        if self._seen[anchor] > 1:
            anchor = f"{anchor}-{self._seen[anchor] - 1}"
        self.headings.append(Heading(level, title, anchor))
        return f'<h{level} id="{anchor}"><a href="#{anchor}">{text}</a></h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link within the site or to the web; what the site does not hold keeps its words alone."""
        if OUTSIDE.match(url):
            return super().link(text, url, title)
        path, anchor = follow(url, self.source)
        if path not in self.pages:
            return text
        self.links.append((site_path(path), anchor))
        place = "" if path == self.source else relative(site_path(path), site_path(self.source))
        return f'<a href="{place}{"#" if anchor else ""}{anchor}">{text}</a>'

    def table(self, text: str) -> str:
        """A table that scrolls by itself where the window is narrow."""
        return f'<div class="wide"><table>{text}</table></div>\n'

    def block_code(self, code: str, info: str | None = None) -> str:
        """Code in its language's colours."""
        try:
            lexer = get_lexer_by_name(info.split()[0]) if info else None
        except ClassNotFound:
            lexer = None
        return f'<pre class="code"><code>{colour(code, lexer) if lexer else html.escape(code)}</code></pre>\n'

    def inline_math(self, body: str) -> str:
        """No formulas in LaTeX so far."""
        raise ValueError(f"{self.source}: the site shows no LaTeX, and here is some: {body[:60]!r}")

    block_math = inline_math

    def latex_environment(self, name: str, body: str) -> str:
        """No formulas in LaTeX so far."""
        return self.inline_math(body)


def colour(code: str, lexer=None) -> str:
    """Code as HTML with Pygments' short class names; Python unless a lexer is given.

    Example:
        >>> colour("for x in y: pass")[:25]
        '<span class="k">for</span'
    """
    return highlight(code.rstrip("\n"), lexer or PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).rstrip("\n")


def terminal(text: str) -> str:
    """What a program printed, escaped, with the terminal's colours as classes."""
    return f"<pre>{ansi2html(text)}</pre>"
