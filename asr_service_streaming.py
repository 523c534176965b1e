#!/usr/bin/env python3
"""Voice ASR service, streaming mode. See README.md."""

if __name__ == "__main__":
    from voice.process.start import begin

    START = begin()  # before anything slow is imported

    import sys

    from voice.prerequisites import run

    sys.exit(run("streaming", START))
