"""The command ``voice-asr``, for people: each module is one of its subcommands. ``main`` has the flags of all of them."""
