"""How good a run or a server is: metrics, baselines, report, model card."""
