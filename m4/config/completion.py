"""Completion of the command line in bash, zsh and fish: scripts that ask m4 what fits.

    eval "$(m4-moe --completion=bash)"

Configuration files are not run for it but for the variants of one that is named.
"""

import contextlib
from pathlib import Path

from m4.config import code, flags, program, rules
from m4.errors import ConfigError

ASK = "--complete"  # LINE: prints what the last word of a line can become
FILES = ("workdir", "on", "config_json", "json")  # flags whose values the shell completes
SCRIPTS = {
    "bash": f"""_m4_moe() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" whole word found IFS=$'\\n'
  whole="${{line##* }}" word="${{COMP_WORDS[COMP_CWORD]}}"
  [[ $word == [=:] ]] && word=""
  found=($(m4-moe {ASK} "$line" 2>/dev/null))
  COMPREPLY=("${{found[@]#"${{whole%"$word"}}"}}")
}}
complete -o nospace -o default -F _m4_moe m4-moe""",
    "zsh": f"""#compdef m4-moe
_m4_moe() {{
  local -a found
  found=(${{(f)"$(m4-moe {ASK} "$LBUFFER" 2>/dev/null)"}})
  (( $#found )) && compadd -Q -S '' -- $found || _files
}}
compdef _m4_moe m4-moe""",
    "fish": f"complete -c m4-moe -a '(m4-moe {ASK} (commandline -cp) 2>/dev/null)'",
}


def candidates(line: str) -> list[str]:
    """What the last word of a command line can become; nothing where the shell's files fit."""
    *before, word = line.split(" ")
    previous = before[-1] if before else ""
    words = [one for one in before[1:] if one]
    with contextlib.suppress(ConfigError, ValueError, OSError, ImportError):
        if previous == "--set":
            found = _fields(word, words)
        elif word.startswith(("--set=", "--config.")):
            head = "--set=" if word.startswith("--set=") else "--config."
            found = [head + field for field in _fields(word.removeprefix(head), words)]
        elif "=" in word:
            flag, _, value = word.partition("=")
            found = [f"{flag}={one}" for one in _values(flag.lstrip("-"), value)]
        elif previous.startswith("--") and previous.lstrip("-") in flags.NAMES:
            found = _values(previous.lstrip("-"), word)
        elif words and words[0] in flags.TOOLS:  # has words of its own, and files
            found = []
        else:
            found = [f"--{name}" for name in flags.SWITCHES]
            found += [f"--{name}=" for name in flags.NAMES if name not in flags.SWITCHES]
            found += [] if words else [*flags.MODES, *flags.TOOLS]
        return sorted(one for one in {*found} if one.startswith(word))
    return []


def _values(flag: str, value: str) -> list[str]:
    """Values of a flag."""
    if flag == "mode":
        return [*flags.MODES]
    if flag in ("completion", "force"):
        return [*SCRIPTS] if flag == "completion" else [*flags.FORCE]
    if flag != "config":
        return []
    path, colon, _ = value.partition(":")
    if colon:
        return [f"{path}:{variant}" for variant in program.variants(path)]
    names = [Path(one).stem for one in program.shipped()]
    return program.shipped() if value.startswith("configs/") else names


def _fields(word: str, words: list[str]) -> list[str]:
    """`section.field=`, and the names that a field may be after its `=`."""
    found = _rules(words)
    name, equals, _ = word.partition("=")
    if not equals:
        return [f"{path}=" for path in found if "." in path or path == "seed"]
    rule = found.get(name)
    if rule is None:
        return []
    names = rule.names() if rule.names else ("true", "false") if rule.kind is bool else ()
    return [f"{name}={one}" for one in names]


def _rules(words: list[str]) -> dict[str, rules.Rule]:
    """The fields that can be set, with those of the method of the configuration of the line."""
    text = " ".join(words).replace("--config ", "--config=")
    named = [w.removeprefix("--config=") for w in text.split() if w.startswith("--config=")]
    if not named:
        return rules.FIELDS
    method = program.load_file(named[0])["method"]
    cls = code.method_class(method["name"], method.get("fidelity", "m4"))
    return rules.FIELDS | rules.method_rules(cls)
