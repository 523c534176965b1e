"""Models: where they are, how they are loaded, and the loaded weights that all pipelines share."""
