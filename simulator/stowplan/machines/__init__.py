"""Readers of ``hwprofiles/``: parts, and machines that compose them."""
