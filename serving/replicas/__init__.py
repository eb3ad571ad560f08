"""Several servers on one machine, monitored and restarted."""
