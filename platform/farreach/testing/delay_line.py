"""A cable that takes its time: hands frames from one network interface to another after a while.

`python -m farreach.testing.delay_line LEFT RIGHT` reads the delay, in milliseconds, from lines of
its standard input, and ends when that is closed. Linux has `netem` for this, but many kernels are
built without.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress

# A frame of 64 KiB with its headers; interfaces hand such over whole, for the next to cut.
FRAME_BYTES = 1 << 17
BUFFER_BYTES = 1 << 24
_ALL_PROTOCOLS = 3
# Of <linux/if_packet.h> and <asm-generic/socket.h>, which Python does not name.
_LEVEL_PACKET, _VIRTUAL_HEADER, _IGNORE_OUTGOING = 263, 15, 23
_SEND_BUFFER_FORCE, _RECEIVE_BUFFER_FORCE = 32, 33


def port(interface: str) -> socket.socket:
    """All frames that arrive at an interface; what is sent leaves through it.

    Each frame has a header in front that says how it is to be cut and what of its checksum is
    still to be done, so that frames pass unchanged.
    """
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    frames.setsockopt(_LEVEL_PACKET, _VIRTUAL_HEADER, 1)
    frames.setsockopt(_LEVEL_PACKET, _IGNORE_OUTGOING, 1)
    for option in (_SEND_BUFFER_FORCE, _RECEIVE_BUFFER_FORCE):
        frames.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    frames.bind((interface, 0))
    frames.setblocking(False)
    return frames


def relay(left: socket.socket, right: socket.socket) -> None:
    """Hand frames over both ways until standard input is closed.

    Frames for which an interface has no room, or that it is switched off for, are lost, as on any
    network.
    """
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    beyond = {left: right, right: left}
    delay_s = 0.0
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready = select.select([left, right, sys.stdin], [], [], timeout_s)[0]
        now = time.monotonic()
        for source in beyond.keys() & set(ready):
            with suppress(OSError):
                waiting.append((now + delay_s, beyond[source], source.recv(FRAME_BYTES)))
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                return
            delay_s = float(line) / 1000
        while waiting and waiting[0][0] <= now:
            _, target, frame = waiting.popleft()
            with suppress(OSError):
                target.send(frame)


def main() -> None:
    """Say that it is ready, and relay."""
    ends = port(sys.argv[1]), port(sys.argv[2])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    relay(*ends)


if __name__ == "__main__":
    main()
