"""Studies: many runs that differ in some keys and in their seeds, trained, evaluated and put in one table."""
