"""Ogg pages (RFC 3533): whether a file holds the end of its stream."""

import os
from typing import BinaryIO

LONGEST_PAGE = 27 + 255 + 255 * 255  # bytes
END_OF_STREAM = 4  # a bit of the header's byte 5


def is_whole(stream: BinaryIO) -> bool:
    """Whether the last page is complete and says that it is the last, which libsndfile does not ask.

    Every writer of files sets that mark; what lacks it was cut off, or recorded by a program that died. Other data may
    follow (tags). The stream's position is kept.
    """
    position = stream.tell()
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - 2 * LONGEST_PAGE))
    tail = stream.read()
    stream.seek(position)
    start = tail.rfind(b"OggS\0")
    page = tail[start:] if start >= 0 else b""
    if len(page) < 27 or not page[5] & END_OF_STREAM:
        return False
    segments = page[26]
    return len(page) >= 27 + segments + sum(page[27 : 27 + segments])
