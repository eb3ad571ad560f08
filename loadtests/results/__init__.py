"""Results of load tests: schema, objectives, knee, comparison, plots."""
