"""PNG files put together from their chunks, which need not fit each other."""

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and the right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    """A file of chunks (kind, content)."""
    return PNG_SIGNATURE + b"".join(png_chunk(kind, content) for kind, content in chunks)
