"""The index that the search page looks through: one entry a heading, plain JSON inside of the page."""

from moe_lab.site.pages import Page


def search_index(pages: list[Page]) -> list[dict]:
    """One entry for every heading of every page: where it is, what it is called, which words stand below it.

    Example:
        >>> from moe_lab.site.prose import Heading
        >>> page = Page("GLOSSARY.md", "", [Heading(1, "Glossary", "glossary", ["one  word", "a line"])], [])
        >>> search_index([page])
        [{'page': 'Glossary', 'heading': 'Glossary', 'address': 'glossary.html#glossary', 'text': 'one word a line'}]
    """
    return [
        {
            "page": page.title,
            "heading": heading.title,
            "address": f"{page.path}#{heading.anchor}",
            "text": " ".join(" ".join(heading.text).split()),
        }
        for page in pages
        for heading in page.headings
    ]
