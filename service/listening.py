"""Turns new connections away from a listening socket while those that have been made are still taken.

Closing the socket resets every connection that has been made and not yet been taken: between the last look
and the close there is always a moment in which a client may get in. Linux can be told to drop what opens a
connection; the client's system asks again a second later and finds the port closed.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable

SO_ATTACH_FILTER = 26  # of Linux; Python has no name for it
SYN = 0x02
# Of struct sock_filter: the code, how far to go on when true and when false, a constant.
DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
    (0x45, 0, 1, SYN),  # is it one that opens a connection?
    (0x06, 0, 0, 0),  # yes: drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # no: take it whole
)


def turn_away(listeners: Iterable[socket.socket]) -> bool:
    """Let no new connection be made; those that have been are still taken. Return whether it is possible."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in DROP_SYN))
    option = struct.pack("HL", len(DROP_SYN), ctypes.addressof(program))  # struct sock_fprog
    try:
        for listener in listeners:
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)
    except OSError:
        return False  # another system, or one that forbids it
    return True
