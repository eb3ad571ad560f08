"""What `make docs` adds to the pages: the command line's reference, and the repository's files they link to.

mkdocs calls the function by its name. The commands come from Typer, so their reference cannot fall behind.
A link that leaves docs/, such as one to a result in benchmarks/, becomes a link to a copy of that file.
"""

import inspect
import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

CLI_MARK = "<!-- the verbs: filled in by docs/site_hook.py -->"
FIELDS_MARK = re.compile(r"<!-- fields of ([\w.]+)\.(\w+) -->")
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page with the command reference in it, and links that stay inside the site."""
    source = Path(page.file.abs_src_path).parent
    root = Path(config.config_file_path).parent

    def inside(match: re.Match[str]) -> str:
        target = (source / match[1]).resolve()
        if target.is_relative_to(root / "docs") or not target.is_file():
            return match[1]  # a dead link is left for mkdocs to report
        uri = f"repository/{target.relative_to(root)}"
        if target.suffix == ".md":  # shown as text: its own links lead nowhere in the site
            uri += ".txt"
        if uri not in files.src_uris:
            files.append(File.generated(config, uri, abs_src_path=str(target)))
        return os.path.relpath(uri, Path(page.file.src_uri).parent)

    markdown = LINK.sub(inside, markdown)
    markdown = FIELDS_MARK.sub(lambda match: _fields(root, match[1], match[2]), markdown)
    return markdown.replace(CLI_MARK, "\n".join(_verbs())) if CLI_MARK in markdown else markdown


def _fields(root: Path, module: str, name: str) -> str:
    """A table of a dataclass: its fields, their defaults, and the docstring under each."""
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for one in griffe.load(f"{module}.{name}", search_paths=[root]).attributes.values():
        if one.docstring is not None:
            words = one.docstring.value.replace("|", "\\|").replace("\n", " ")
            rows.append(f"| `{one.name}` | `{one.value}` | {words} |")
    return "\n".join(rows)


def _verbs() -> list[str]:
    """A section for each verb, in the order of `fruitstand --help`."""
    from fruitstand.cli import VERBS, load

    lines: list[str] = []
    for heading, verbs in VERBS.items():
        lines += ["", f"## {heading}"]
        for name, verb in verbs.items():
            lines += _command(f"fruitstand {name}", load(verb))
    return lines


def _command(name: str, command: Any) -> list[str]:
    """Usage, description and options; of a group, each of its commands."""
    context = command.context_class(command, info_name=name)
    if hasattr(command, "list_commands"):
        lines = ["", f"### {name}", "", command.help or ""]
        for one in command.list_commands(context):
            lines += _command(f"{name} {one}", command.get_command(context, one))
        return lines
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = ["", f"### {name}", "", "```text", usage, "```", "", inspect.cleandoc(command.help or ""), ""]
    rows = [_row(one) for one in command.params if not one.hidden]
    if rows:
        lines += ["| argument or option | default | what it is |", "|---|---|---|", *rows]
    return lines


def _row(parameter: Any) -> str:
    """One line of a command's table."""
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or callable(default) or not str(default):
        shown = ""
    else:
        shown = f"`{default}`"
    words = [(parameter.help or "").replace("|", "\\|").replace("\n", " ")]
    if parameter.envvar:
        words.append(f"Environment: `{parameter.envvar}`.")
    return f"| {names} | {shown} | {' '.join(words)} |"
