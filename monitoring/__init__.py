"""Monitoring: Prometheus configuration and alerts with their tests, Grafana dashboards, drift detection.

`prometheus.yml`, `targets/` and `rules/` configure Prometheus. `tests/` holds promtool cases for the rules.
`captured/` holds metrics pages from machines with a GPU or a gateway. `grafana/` holds the dashboards as
JSON: edit them in Grafana and export them, or edit the JSON.
"""
