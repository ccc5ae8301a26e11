"""Trace replay: requests over time through a scheduler, on a step-time function compiled from a plan."""
