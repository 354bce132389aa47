"""What the examples share: a text to learn from, and a way to measure memory."""

from pathlib import Path

from shared.peak_memory import peak_memory

__all__ = ["alice", "peak_memory"]


def alice() -> str:
    """Alice's Adventures in Wonderland, 148,480 ASCII characters; the README beside it says where it is from."""
    return (Path(__file__).parent / "alice.txt").read_text(encoding="ascii")
