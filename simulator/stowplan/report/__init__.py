"""One self-contained page about a plan: the answer, then pictures that can be read without a legend."""
