"""Websockets by hand: clients that do what no library's client would do."""

import json
import socket
import struct
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def dial(port: int, receive_buffer: int | None = None, timeout: float = 20) -> socket.socket:
    """A TCP connection, over which nothing was said yet."""
    found = socket.socket()
    found.settimeout(timeout)
    if receive_buffer is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    found.connect(("127.0.0.1", port))
    return found


def knock(port: int, path: str = "/v1/stream", receive_buffer: int | None = None) -> tuple[socket.socket, int]:
    """A connection after the handshake, and the status that the server answered with: 101 where it is a websocket."""
    found = dial(port, receive_buffer)
    found.sendall(REQUEST.format(path=path).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = found.recv(1)
        if not piece:
            break
        head += piece
    return found, int((head.split() or [b"", b"0"])[1])


def frame(payload: bytes | str, opcode: int | None = None, last: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    data = payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload
    kind = (TEXT if isinstance(payload, str) else BINARY) if opcode is None else opcode
    size = len(data)
    if size < 126:
        length = bytes([128 | size])
    elif size < 65_536:
        length = bytes([128 | 126]) + struct.pack(">H", size)
    else:
        length = bytes([128 | 127]) + struct.pack(">Q", size)
    return bytes([kind | (128 if last else 0)]) + length + b"\0\0\0\0" + data


def message(**values: Any) -> bytes:
    """JSON in a frame."""
    return frame(json.dumps(values))


def rest(connection: socket.socket) -> bytes:
    """All bytes until the server says good-bye, closes the connection or resets it."""
    found = b""
    try:
        while close_code(found) is None and (piece := connection.recv(1 << 20)):
            found += piece
    except ConnectionError:
        pass
    return found


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Opcodes and payloads of a server's whole frames."""
    found, at = [], 0
    while len(data) >= at + 2:
        size, begin = data[at + 1] & 127, at + 2
        if size == 126:
            size, begin = struct.unpack_from(">H", data, begin)[0], begin + 2
        elif size == 127:
            size, begin = struct.unpack_from(">Q", data, begin)[0], begin + 8
        if len(data) < begin + size:
            break
        found.append((data[at] & 15, data[begin : begin + size]))
        at = begin + size
    return found


def events(data: bytes) -> list[dict[str, Any]]:
    """Messages of our own protocol among a server's frames."""
    return [json.loads(payload) for opcode, payload in frames(data) if opcode == TEXT]


def close_code(data: bytes) -> int | None:
    """Of the server's close frame, where there is one."""
    codes = [struct.unpack(">H", payload[:2])[0] for opcode, payload in frames(data) if opcode == CLOSE and payload]
    return codes[-1] if codes else None
