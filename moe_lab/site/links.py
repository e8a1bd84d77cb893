"""Where things lie: files of the repository on the site, and the repository itself, once it has an address."""

import os
from pathlib import Path, PurePosixPath

REPOSITORY = ""
"""The public address, "https://host/owner/name" without a slash at its end; empty while there is none. Badges and links
to source files appear when it is filled in, and nothing else has to change."""
BRANCH = "main"

NOTEBOOKS = PurePosixPath("notebooks")


def site_path(path: str) -> str:
    """Where a file of the repository lies on the site.

    Example:
        >>> site_path("notebooks/01_routing.ipynb"), site_path("notebooks/solutions/01_routing.ipynb")
        ('01_routing.html', 'solutions/01_routing.html')
        >>> site_path("GLOSSARY.md"), site_path("docs/several_ranks.md")
        ('glossary.html', 'docs/several_ranks.html')
    """
    place = PurePosixPath(path)
    place = place.relative_to(NOTEBOOKS) if place.is_relative_to(NOTEBOOKS) else place
    return str(place.with_suffix(".html")).lower()


def relative(target: str, page: str) -> str:
    """The way from one page of the site to another.

    Example:
        >>> relative("glossary.html", "solutions/01_routing.html")
        '../glossary.html'
    """
    return os.path.relpath(target, PurePosixPath(page).parent).replace(os.sep, "/")


def follow(link: str, source: str) -> tuple[str, str]:
    """Read a relative link in a file as (file of the repository, anchor).

    Example:
        >>> follow("../GLOSSARY.md#load", "notebooks/01_routing.ipynb")
        ('GLOSSARY.md', 'load')
    """
    path, _, anchor = link.partition("#")
    joined = os.path.normpath(PurePosixPath(source).parent / path) if path else source
    return Path(joined).as_posix(), anchor


def badges(path: str) -> list[tuple[str, str]]:
    """(words, address) of the services that open a notebook; none while the repository has no address on GitHub.

    Binder builds the lab from the repository. Colab opens the notebook alone: there the lab has to be installed first.
    """
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    if not REPOSITORY or owner_and_name == REPOSITORY:
        return []
    return [
        ("Open in Colab", f"https://colab.research.google.com/github/{owner_and_name}/blob/{BRANCH}/{path}"),
        ("Open in Binder", f"https://mybinder.org/v2/gh/{owner_and_name}/{BRANCH}?urlpath=lab/tree/{path}"),
    ]
