"""Checks of stores: `selfalign verify` and `selfalign compare`."""
