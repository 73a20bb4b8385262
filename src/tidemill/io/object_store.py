"""Open an object store by its place.

In: a folder or a URL. Out: obstore's store. Invariant: a folder is made when it is absent.
"""

from __future__ import annotations

from pathlib import Path

from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

MISSING = (FileNotFoundError, NotFoundError)  # what a store raises for an object that is not there
UNREACHABLE = (BaseError, OSError)  # what it raises, `MISSING` among them


def open_store(url_or_folder: str | Path) -> ObjectStore:
    """`url_or_folder`: a folder, or a URL such as s3://bucket/prefix."""
    if isinstance(url_or_folder, str) and "://" in url_or_folder:
        return from_url(url_or_folder)
    return LocalStore(Path(url_or_folder).expanduser().absolute(), automatic_cleanup=False, mkdir=True)
