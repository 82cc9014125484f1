"""File names beyond ASCII, whatever the locale."""

from __future__ import annotations

import codecs
import os
import sys


def use_utf8() -> None:
    """Start this process anew in Python's UTF-8 mode if file names would be ASCII.

    Python does so by itself in the C locale, unless the environment forbids it. Without it, a name
    with other letters cannot be written into a file or handed to a library.
    """
    is_ascii = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if not is_ascii or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
