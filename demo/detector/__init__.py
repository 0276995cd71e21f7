"""The demo's region detector and its training."""
