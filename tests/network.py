"""Who is called: the addresses that a command, and all that it starts, tries to connect to, read by strace."""

import re
import shutil
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

STRACE = shutil.which("strace")
CALL = re.compile(
    r"(?:connect|sendto|sendmsg)\(.*?sin6?_port=htons\((\d+)\).*?(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([0-9a-f.:]+)"
)


def watched(command: Sequence[str], log: Path) -> list[str]:
    """The command under strace, which stops for nothing but these calls; as it is where there is no strace."""
    log.touch()
    if STRACE is None:
        return [*command]
    return [
        *(STRACE, "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg", "-s", "0"),
        *("-o", str(log), "--", *command),
    ]


def list_calls(log: Path) -> list[str]:
    """`address:port` of each call that leaves this machine, also of those that failed."""
    found = CALL.findall(log.read_text(encoding="utf-8", errors="replace"))
    return sorted({f"{address}:{port}" for port, address in found if not ip_address(address).is_loopback})
