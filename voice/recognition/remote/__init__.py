"""Recognition by a FunASR runtime server: ``--engine wss://host:10095``."""
