"""Published measurements, and how predictions compare with them."""
