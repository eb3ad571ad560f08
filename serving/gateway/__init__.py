"""The gateway: Envoy in front of the servers checks keys, limits rates and balances load."""
