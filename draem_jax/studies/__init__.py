"""Studies: many runs as one table: what they are, who runs them, what comes."""
