#!/usr/bin/env python3
"""Voice ASR service, streaming mode. See README.md."""

import sys

from voice.cli import main

if __name__ == "__main__":
    sys.exit(main("streaming"))
