"""``python -m voice.conversion MODEL_DIR``; see ``voice.conversion.command``."""

import sys

from voice.conversion.command import main

if __name__ == "__main__":
    sys.exit(main())
