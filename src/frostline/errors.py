"""What is refused, and in which words."""

import difflib
import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

# Words in the name of a query's part whose value nobody else may know, such as X-Amz-Signature, sig or access_token.
SECRET = frozenset(
    ["auth", "credential", "credentials", "key", "passwd", "password", "pwd", "secret", "session", "sig", "signature"]
    + ["token"]
)
# The same where a name runs its words together.
SECRET_ENDING = re.compile(
    r"(access|api|auth|private|secret|subscription)key$|(token|password|secret|signature)$", re.IGNORECASE
)
PLACE = r"\$\{(\w+)\}"  # of a value that the environment holds
# Variables of the environment whose value nobody else may know, by the last word of their names.
SECRET_VARIABLE = re.compile(r"(^|_)(KEY|PASSWD|PASSWORD|SAS|SECRET|SIGNATURE|TOKEN)$", re.IGNORECASE)
# The password of an address, as a variable holds it; signs in it may stand unescaped.
PASSWORD = re.compile(r"\w[\w+.-]*://[^:@/\s]*:(\S+)@")
SHORTEST_SECRET = 8  # characters; what is shorter would be found in ordinary words


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


def find_secret(address: str) -> str | None:
    """The part of a query whose value looks like a secret; None where there is none, or it stands for one of the environment.

    >>> find_secret("https://host/a.zip?v=1&X-Amz-Signature=f00"), find_secret("https://host/a.zip?token=${TOKEN}")
    ('X-Amz-Signature', None)
    """
    for name, value in re.findall(r"[?&;#]([^=&;#]+)=([^&;#]*)", address):
        if _is_secret(unquote(name)) and value and not re.fullmatch(PLACE, value):
            return str(name)
    return None


def _is_secret(name: str) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    return bool(words & SECRET or SECRET_ENDING.search(name))


def fill_places(address: str) -> str:
    """The address with each `${NAME}` in its query replaced by that variable of the environment; Refused where it is not set."""

    def value_of(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise Refused(f"{redact(address)} needs the variable {found[1]}, which is not set: export {found[1]}=...")
        return os.environ[found[1]]

    before, mark, query = address.partition("?")
    return before + mark + re.sub(PLACE, value_of, query)


def redact(text: str) -> str:
    """The text with all addresses in it as they may be shown and kept: no user, password or fragment, no value of a query.

    Names of AWS keys go, too, wherever they stand, and so do the values of the environment's own secrets.

    >>> redact("https://me:secret@host/a.zip?token=1&b=2#c failed")
    'https://host/a.zip?token=***&b=*** failed'
    """
    for secret in _environment_secrets():
        text = text.replace(secret, "***")
    text = re.sub(r"\w[\w+.-]*://\S+", lambda found: _redact_address(found[0]), text)
    return re.sub(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b", "***", text)


def _environment_secrets() -> list[str]:
    """The values of secret variables, and passwords of addresses, the longest first; a path is none."""
    found = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name) and value[:1] not in "/~."}
    for value in os.environ.values():
        if address := PASSWORD.match(value):
            found |= {address[1], unquote(address[1])}
    return sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len)[::-1]


def _redact_address(address: str) -> str:
    bare = re.sub(r"(?<=://)[^/\s]*@", "", address.partition("#")[0])
    return re.sub(r"(?<=[?&])([^=&]+)=[^&]*", r"\1=***", bare)
