"""Graders that misbehave, for the tests of the pool."""

import os
import signal
import time


def hostile(gold: str, response: str) -> bool:
    """Does what the response says."""
    if response == "hang":
        time.sleep(1000)
    if response == "spin":
        while True:
            pass
    if response == "raise":
        raise KeyError("no such thing")
    if response == "exit":
        raise SystemExit(3)
    if response == "allocate":
        return len(bytearray(10 << 30)) == 0
    if response == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if response == "print":
        print('["correct", ""]', flush=True)
        os.write(1, b'["correct", ""]\n')
    return gold == response


def unhelpful(gold: str, response: str) -> str:
    """Returns something that is no verdict."""
    return "certainly"
