"""Which experts each token is routed to: synthetic traces fitted to published figures, recorded ones, and caches."""
