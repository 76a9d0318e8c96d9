"""The licence of everything that the lock installs is one that suits Apache-2.0, or is on a short list with its reason."""

import re
from importlib import metadata

import pytest
from test_architecture import ROOT, locked_versions

# Those that ask for a notice at most, and MPL-2.0, which reaches no further than its own files.
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0"),
    *("PSF-2.0", "Zlib", "ZPL-2.1"),
}
# What packages say that name no SPDX expression: the beginning of a classifier, a field or a licence's text.
WORDS = {
    "Apache": "Apache-2.0",
    "3-Clause BSD": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "MIT": "MIT",
    "Mozilla Public License 2.0": "MPL-2.0",
    "Permission is hereby granted, free of charge": "MIT",
    "Licensed under the Apache License, Version 2.0": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Zope Public License": "ZPL-2.1",
}
# Name -> what it says, and why it may stay; none of them is part of what we hand on.
EXCEPTIONS = {
    "pygit2": ("GPLv2 with linking exception", "whoever links it may keep their own licence; DVC's"),
    "grandalf": ("GPLv2 | EPLv1", "taken under the EPL, unchanged; DVC's, for drawing graphs"),
    "psycopg": ("LGPL-3.0-only", "imported as it comes, and whoever likes may put in another; what reaches PostgreSQL"),
    "psycopg-binary": ("LGPL-3.0-only", "its faster half, of which the same holds"),
    "asyncssh": ("EPL-2.0 OR GPL-2.0-or-later", "taken under the EPL, unchanged; DVC's, for remotes over SSH"),
}


def licence_of(name: str) -> str:
    """An SPDX expression, or the package's own words where nobody could make one of them."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return str(expression)
    said = [entry.split(" :: ")[-1] for entry in about.get_all("Classifier", []) if entry.startswith("License ::")]
    said = [word for word in said if word != "OSI Approved"]
    field = (about.get("License") or "").strip()
    if name in EXCEPTIONS:
        return field
    texts = [*said, *([field] if field not in ("", "UNKNOWN") else []), *_licence_files(name)]
    for text in texts:
        if re.fullmatch(r"[\w.-]+( (AND|OR|WITH) [\w.-]+)*", text) and _ids_in(text) & ALLOWED:
            return text
        for word, licence in WORDS.items():
            if text.startswith(word) or (len(text) > 200 and word in text):
                return licence
    return " / ".join(text[:60] for text in texts) or "nothing"


def _licence_files(name: str) -> list[str]:
    files = [file for file in metadata.files(name) or [] if re.match(r"LICEN[SC]E|COPYING", file.name)]
    return [" ".join(file.read_text(encoding="utf-8").split()) for file in files]


def _ids_in(expression: str) -> set[str]:
    return {word for word in re.split(r"[\s()]+", expression) if word and word not in ("AND", "OR", "WITH")}


def is_allowed(expression: str) -> bool:
    """One of several that one may choose from is enough; where they are nested, all of them must suit.

    >>> is_allowed("Apache-2.0 OR GPL-2.0-only"), is_allowed("MIT AND GPL-2.0-only")
    (True, False)
    """
    choices = [expression] if "(" in expression else expression.split(" OR ")
    return any(_ids_in(choice) <= ALLOWED for choice in choices)


@pytest.mark.parametrize("lock", ["dev"])
def test_each_licence_suits_ours_or_is_an_exception_with_a_reason(lock):
    found = {}
    for name in locked_versions(ROOT / "locks" / f"{lock}.txt"):
        try:
            found[name] = licence_of(name)
        except metadata.PackageNotFoundError:  # of another system or Python
            continue
    assert len(found) > 150
    strange = {name: said for name, said in found.items() if not is_allowed(said) and name not in EXCEPTIONS}
    assert not strange, f"Look at these licences, then add them to ALLOWED, WORDS or EXCEPTIONS: {strange}"


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_says_what_it_said_when_it_was_made(name):
    assert licence_of(name) == EXCEPTIONS[name][0]


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only", False),
        ("MIT AND AGPL-3.0-only", False),
        ("GPL-2.0-only AND (Apache-2.0 OR MIT)", False),
        ("nothing", False),
    ],
)
def test_a_licence_that_reaches_into_our_code_is_not_allowed(expression, allowed):
    assert is_allowed(expression) == allowed
