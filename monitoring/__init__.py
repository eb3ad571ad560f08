"""What to watch: Prometheus scrapes and rules, alerts with their tests, Grafana dashboards.

`prometheus.yml`, `targets/` and `rules/` are what Prometheus runs, `tests/` is what promtool checks them
with, `captured/` holds metrics pages of what a machine without GPU or gateway cannot show, `grafana/` is what
Grafana loads: its dashboards are edited there and exported as JSON, or edited as JSON.
"""
