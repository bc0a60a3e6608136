"""`python -m daemon.cli`: the console script without its name."""

from __future__ import annotations

from daemon.cli import main

if __name__ == "__main__":
    main()
