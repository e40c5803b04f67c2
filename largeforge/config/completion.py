"""Tab completion: `complete` answers what may follow, `script` is what a shell sources to ask it.

Groups, choices, recipes, keys of the choices in use, and literals; files are left to the shell.
"""

from __future__ import annotations

from collections.abc import Sequence

from largeforge.config.places import Library

_FLAGS = ("--help", "--version", "--cfg", "--origins", "--multirun", "--metric", "--config-dir", "--schema", "--completion")
_AFTER = {"--cfg": ["job", "hydra", "all"], "-c": ["job", "hydra", "all"], "--completion": ["bash", "zsh", "fish"]}


def complete(words: Sequence[str]) -> list[str]:
    """Return the words that may stand in place of the last one.

    Args:
        words: what was typed after the program's name; the last is being typed and may be empty. A word that ends in
            "=" or "." is to be continued without a space.
    """
    *before, current = words or [""]
    if before and before[-1] in _AFTER:
        return [word for word in _AFTER[before[-1]] if word.startswith(current)]
    if current.startswith("-"):
        return [flag for flag in _FLAGS if flag.startswith(current)]
    library = Library(tuple(_config_dirs(before)))
    key, equals, value = current.partition("=")
    if equals and library.is_group(key.partition("@")[0]):
        listed = "[" if value.startswith("[") else ""  # tracker=[csv,wan
        *kept, last = value.removeprefix("[").split(",")
        head = listed + (",".join([*kept, ""]) if kept else "")
        return [f"{key}={head}{choice}" for choice in library.choices(key.partition("@")[0]) if choice.startswith(last)]
    return _typed(before, current, library)


def _typed(before: list[str], current: str, library: Library) -> list[str]:
    """Complete what needs the composed config: keys and literals."""
    from largeforge.config.check import key_table
    from largeforge.config.command_line import read_flags
    from largeforge.config.fields import typed_member
    from largeforge.config.gather import gather
    from largeforge.errors import LargeForgeError

    chosen = [word for word in before if "=" in word and not word.startswith("-")]
    if not any(word.startswith(("task=", "recipe=")) for word in chosen):
        names = ["task=", "recipe="] if library.recipes() else ["task="]
        return [name for name in names if name.startswith(current)]
    try:
        keys = key_table(gather(read_flags([*chosen, *(f"--config-dir={path}" for path in _config_dirs(before))])))
    except LargeForgeError:
        return []
    key, equals, value = current.partition("=")
    if equals:
        known = keys.get(key)
        return [f"{key}={word}" for word in (known.literals if known else []) if word.startswith(value)]
    depth = current.count(".")
    found: list[str] = []
    for path, known in keys.items():
        if not path.startswith(current) or path.count(".") != depth:
            continue
        if known.part is not None:
            found += [f"{path}=", f"{path}."] if any(other.startswith(f"{path}.") for other in keys) else [f"{path}="]
        else:
            found.append(f"{path}." if typed_member(known.kind) is not None else f"{path}=")
    return found


def _config_dirs(words: Sequence[str]) -> list[str]:
    found = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    return found + [after for word, after in zip(words, words[1:], strict=False) if word in {"--config-dir", "-cd"}]


def script(shell: str) -> str:
    """Return the completion script of a shell: `source <(largeforge --completion bash)`."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell].strip("\n")


_BASH = r"""
# Tab completion of LargeForge for bash. Put into ~/.bashrc: source <(largeforge --completion bash)
_largeforge_ask() {  # $1: words to drop from the front; the rest of the line up to the cursor goes to LargeForge
    local line="${COMP_LINE:0:COMP_POINT}" words current
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    local IFS=$'\n'
    COMPREPLY=($("${LARGEFORGE_ASK[@]}" --complete "${words[@]:$1}" 2>/dev/null))
    # bash breaks words at "=": what it replaces begins after the last one
    if [[ "$current" == *"="* && "$COMP_WORDBREAKS" == *"="* ]]; then
        local i
        for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]="${COMPREPLY[i]#"${current%"${current##*=}"}"}"; done
    fi
    [[ ${#COMPREPLY[@]} -gt 0 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace 2>/dev/null
    return 0
}
_largeforge() { local LARGEFORGE_ASK=("${COMP_WORDS[0]}"); _largeforge_ask 1; }
_largeforge_python() {
    [[ "${COMP_WORDS[1]} ${COMP_WORDS[2]}" == "-m largeforge" ]] || return 0
    local LARGEFORGE_ASK=("${COMP_WORDS[0]}" -m largeforge)
    _largeforge_ask 3
}
complete -o bashdefault -o default -F _largeforge largeforge
complete -o bashdefault -o default -F _largeforge_python python python3
"""

_ZSH = r"""
#compdef largeforge
# Tab completion of LargeForge for zsh. Put into ~/.zshrc, after compinit: source <(largeforge --completion zsh)
_largeforge() {
    local -a found open
    local answer
    for answer in ${(f)"$(largeforge --complete "${(@)words[2,CURRENT]}" 2>/dev/null)"}; do
        if [[ $answer == *[=.] ]]; then open+=("$answer"); else found+=("$answer"); fi
    done
    (( $#open )) && compadd -S '' -- $open
    (( $#found )) && compadd -- $found
    (( $#open + $#found )) || _files
}
compdef _largeforge largeforge
"""

_FISH = r"""
# Tab completion of LargeForge for fish. Put into ~/.config/fish/config.fish: largeforge --completion fish | source
function __largeforge_complete
    set -l words (commandline -opc) (commandline -ct)
    largeforge --complete $words[2..-1] 2>/dev/null
end
complete -c largeforge -a '(__largeforge_complete)'
"""
