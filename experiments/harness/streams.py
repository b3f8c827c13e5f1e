"""Standard output that outlives its reader: a run is not lost because nobody reads what it prints.

`python -m experiments run ... | head` closes the pipe after ten lines, and a terminal may know no
letters but ASCII. Both are errors in the middle of a run: what follows a closed pipe is dropped,
and letters become their nearest.
"""

from __future__ import annotations

import codecs
import io
import os
import sys

__all__ = ["failed", "outlive_readers"]

NEAREST = {
    "±": "+-",
    "∞": "inf",
    "·": "*",
    "²": "^2",
    "—": "-",
    "–": "-",
    "…": "...",
    "━": "-",
    "•": "*",
}


class Lasting(io.FileIO):
    """A file descriptor that becomes the null device when it cannot be written any more."""

    failure: OSError | None = None

    def write(self, data) -> int | None:
        """Writes, or drops what nobody reads."""
        try:
            return super().write(data)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.failure = error
            # Under the same number, so that nothing that is written later can fail again.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            # As if all were written: a buffer repeats what it could not write.
            return len(data)


def outlive_readers() -> None:
    """Lets standard output and standard error go on after a closed pipe, and replace what they cannot encode."""
    codecs.register_error("nearest", _nearest)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            # What the old buffer holds would come after what the new one writes.
            stream.flush()
            # The descriptor outlives the object: the interpreter's own stream has it too.
            raw = Lasting(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, "nearest", line_buffering=True
            )
            setattr(sys, name, lasting)


def failed() -> OSError | None:
    """Why standard output could not be written, for instance a full disk; a closed pipe is no failure."""
    if sys.stdout is None:
        return None
    # A full disk may be noticed only when the buffer is emptied.
    sys.stdout.flush()
    return sys.stdout.buffer.raw.failure


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(NEAREST.get(letter, "?") for letter in letters), error.end
