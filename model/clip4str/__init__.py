"""CLIP4STR scene text recognition: reads the word in an image."""
