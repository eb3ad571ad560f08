"""The service level objectives, how fast their budgets burn, and which alerts fire."""

from monitoring.board import Board, Panel, Query, Row

_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_BURNING = ((1.0, "orange"), (6.0, "red"))


def _now(slo: str, objective: str) -> tuple[Panel, ...]:
    return (
        Panel(
            title=f"{slo}: burn rate",
            description=f"{objective} Over the last hour; at 1 the budget of 30 days lasts 30 days.",
            unit="none",
            kind="stat",
            steps=_BURNING,
            queries=(Query(expr=f'slo:burn_rate:1h{{slo="{slo}"}}', legend="burn rate"),),
        ),
        Panel(
            title=f"{slo}: spent in three days",
            description="Part of the budget of 30 days that the last three days spent; a tenth is on"
            " schedule.",
            unit="percentunit",
            kind="stat",
            steps=((0.1, "orange"), (0.5, "red")),
            queries=(Query(expr=f'slo:burn_rate:3d{{slo="{slo}"}} * 3 / 30', legend="spent"),),
        ),
    )


def _burn_rates(slo: str) -> Panel:
    return Panel(
        title=f"{slo}: burn rates",
        description="A page fires above 14.4 (1h and 5m) or 6 (6h and 30m), a ticket above 3 (1d and 2h) or"
        " 1 (3d and 6h).",
        unit="none",
        steps=_BURNING,
        queries=tuple(
            Query(expr=f'slo:burn_rate:{window}{{slo="{slo}"}}', legend=window) for window in _WINDOWS
        ),
    )


OBJECTIVES = Board(
    uid="fruitstand-objectives",
    title="fruitstand: objectives",
    description="Availability 99.9 % and latency 99 % within 500 ms: budgets, burn rates, alerts.",
    rows=(
        Row(
            title="Objectives",
            panels=(
                *_now("availability", "99.9 % of the calls are answered."),
                *_now("latency", "99 % of the calls take 500 ms or less."),
                _burn_rates("availability"),
                _burn_rates("latency"),
            ),
        ),
        Row(
            title="Alerts",
            panels=(
                Panel(
                    title="Alerts",
                    description="Pending and firing; docs/runbook.md says what each one means and what to"
                    " do.",
                    unit="none",
                    queries=(
                        Query(
                            expr="sum by (alertname, severity, alertstate) (ALERTS)",
                            legend="{{alertname}} {{severity}} {{alertstate}}",
                        ),
                    ),
                ),
                Panel(
                    title="Calls behind the objectives",
                    description="Below 0.1/s on average the burn rates fire no alert.",
                    unit="reqps",
                    queries=(Query(expr="slo:requests:rate1m", legend="{{slo}}"),),
                ),
            ),
        ),
    ),
)
