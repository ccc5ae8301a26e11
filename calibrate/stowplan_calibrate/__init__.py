"""Measures a machine, fits physical forms to what was measured, and writes profiles that stowplan reads."""
