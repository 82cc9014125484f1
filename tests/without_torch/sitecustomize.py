"""On the path of the processes that tests start: there PyTorch, which tests compare with, cannot be
imported.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
