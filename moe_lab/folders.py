"""Where the folders lie that are no Python packages: in a wheel inside of this one, in a checkout beside it."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def find_folder(name: str) -> Path:
    """The folder of that name, wherever this package came from.

    Example:
        >>> (find_folder("data") / "models" / "mixtral-8x7b.json").is_file()
        True

    Raises FileNotFoundError if it is in neither place.
    """
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"this installation of moe-lab has no folder {name}")


DATA = find_folder("data")
NOTEBOOKS = PACKAGE.parent / "notebooks"  # in a checkout alone
