"""Several servers on one machine, watched and restarted."""
