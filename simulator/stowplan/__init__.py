"""Where every byte of a language model should live, and how fast it will be."""

__version__ = "0.1.0"
