"""The contract every stage shares, and the `fruitstand` command.

Modules here use the standard library only; what needs numpy, Pillow or pyarrow imports it inside the
function. `fruitstand.cli` is the one place that knows the stages.
"""

__version__ = "0.2.0.dev0"
