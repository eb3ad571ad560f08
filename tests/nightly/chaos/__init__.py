"""The scoreboard: what goes wrong in production, done on purpose and measured."""
