"""``python -m voice``: the same as the command ``voice-asr``."""

from voice.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main())
