"""What is refused, and in which words."""

import difflib
import re
from collections.abc import Iterable


class Refused(ValueError):
    """What was asked for cannot work; the message says what was given, what is allowed, what to do."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """` (did you mean X?)` of the allowed word that is nearest, whatever its case; "" where none is near.

    >>> nearest("mobilenetv2", ["MobileNetV2", "VGG16"])
    ' (did you mean MobileNetV2?)'
    """
    lowered = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word.lower(), list(lowered), n=1)
    return f" (did you mean {lowered[close[0]]}?)" if close else ""


def first_line(error: Exception, limit: int = 300) -> str:
    """What an exception says, in one line of bearable length; libraries say it in up to 100 000 characters.

    >>> first_line(ValueError("no such layer\\n" + 9 * "x")), len(first_line(ValueError(9000 * "x")))
    ('no such layer', 300)
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= limit else lines[0][: limit - 3] + "..."


def some(names: Iterable[object], limit: int = 8) -> str:
    """The first names, and how many more there are.

    >>> some("abc", 2)
    'a, b and 1 more'
    """
    listed = [str(name) for name in names]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def redact(text: str) -> str:
    """The text with all addresses in it as they may be shown and kept: no user, password or fragment, no value of a query.

    >>> redact("https://me:secret@host/a.zip?token=1&b=2#c failed")
    'https://host/a.zip?token=***&b=*** failed'
    """
    return re.sub(r"\w[\w+.-]*://\S+", lambda found: _redact_address(found[0]), text)


def _redact_address(address: str) -> str:
    bare = re.sub(r"(?<=://)[^/\s]*@", "", address.partition("#")[0])
    return re.sub(r"(?<=[?&])([^=&]+)=[^&]*", r"\1=***", bare)
