"""What if: sweeps over scenarios, shadow prices, upgrades, break-even points."""
