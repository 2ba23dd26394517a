"""Scripts that complete the commands and options of `audiocraft` in a shell, made from its parser."""

from __future__ import annotations

import argparse
from typing import Callable

BASH = """_audiocraft() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}} $previous" in
{values}
  esac
  case "${{COMP_WORDS[1]}}" in
{options}
  esac
}}
complete -o default -F _audiocraft audiocraft"""


def bash(parser: argparse.ArgumentParser) -> str:
    """Return a script for bash. Where nothing matches, bash completes file names."""
    commands = _commands(parser)
    values = [
        f'    {_pattern(name, action)}) COMPREPLY=($(compgen -W "{_choices(action)}" -- "$word")); return ;;'
        for name, command in commands.items()
        for action in command._actions
        if action.choices and action.option_strings
    ]
    options = [
        f'    {name}) COMPREPLY=($(compgen -W "{" ".join(_words(command))}" -- "$word")) ;;'
        for name, command in commands.items()
    ]
    return BASH.format(commands=" ".join(commands), values="\n".join(values), options="\n".join(options))


def zsh(parser: argparse.ArgumentParser) -> str:
    """Return a script for zsh, which can run the one for bash."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(parser)}"


def fish(parser: argparse.ArgumentParser) -> str:
    """Return a script for fish."""
    lines = []
    for name, command in _commands(parser).items():
        lines.append(f"complete -c audiocraft -n __fish_use_subcommand -f -a {name} -d {_quoted(command.description)}")
        condition = f"complete -c audiocraft -n '__fish_seen_subcommand_from {name}'"
        for action in command._actions:
            flags = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in action.option_strings]
            chosen = f" -f -a '{_choices(action)}'" if action.choices else ""
            if flags:
                needs_value = " -r" if action.nargs != 0 else ""
                help = _quoted((action.help or "").replace("%%", "%"))
                lines.append(f"{condition} {' '.join(flags)}{needs_value}{chosen} -d {help}")
            elif chosen:
                lines.append(condition + chosen)
    return "\n".join(lines)


SHELLS: dict[str, Callable[[argparse.ArgumentParser], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def _words(command: argparse.ArgumentParser) -> list[str]:
    """Return the options of a command and the choices of its positional arguments."""
    options = [flag for action in command._actions for flag in action.option_strings]
    return options + [word for action in command._actions if not action.option_strings for word in action.choices or ()]


def _choices(action: argparse.Action) -> str:
    return " ".join(map(str, action.choices or ()))


def _pattern(name: str, action: argparse.Action) -> str:
    return "|".join(f'"{name} {flag}"' for flag in action.option_strings)


def _quoted(text: object) -> str:
    return "'" + str(text or "").replace("\\", "\\\\").replace("'", "\\'") + "'"
