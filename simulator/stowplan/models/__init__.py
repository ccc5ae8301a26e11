"""Readers of ``models/`` and of users' own files: architectures, formats, tensors."""
