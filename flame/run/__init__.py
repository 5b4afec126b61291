"""One run from the command line to its record."""

import sys

if sys.platform == "win32":  # no fcntl, so no lock on a run folder; no fork server
    sys.exit(
        "FLAME runs on Linux and macOS. On Windows use it inside WSL: https://learn.microsoft.com/windows/wsl/install"
    )
