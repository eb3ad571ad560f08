"""Code that all stages share, and the `fruitstand` command.

Modules here need only the standard library; numpy, Pillow and pyarrow are imported inside functions. Only
`fruitstand.cli` knows the stages.
"""

__version__ = "0.2.0.dev0"
