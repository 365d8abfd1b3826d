"""Offline speed: how fast a model reads here, where the time goes, and how far that is from the machine's limits."""
