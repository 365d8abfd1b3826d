"""Synthetic word images to train on: labels, fonts, glyph masks, composition, and the stream of them."""
