"""argv -> compose -> check -> story -> exit code. The console script `largeforge`, and `python -m largeforge`.

Knows nothing about tasks: what to do is in the config. Imports nothing at the top but the standard library, so that help
and completion answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from largeforge.errors import EXIT_DONE, EXIT_FAULT, LargeForgeError


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        argv: words after the program's name; None takes the process's own.

    Returns:
        the exit code: 0 done, 1 a fault of ours, 2 the user's config or input, 3 does not fit, 4 a check failed, 130 or 143 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except LargeForgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader (head, less) left: nothing more can be said, and the interpreter must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception:
        import traceback

        traceback.print_exc()
        print("This is a fault of LargeForge, not of your config. Please report it with the lines above.", file=sys.stderr)
        return EXIT_FAULT


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["--complete"]:
        from largeforge.config.completion import complete

        print("\n".join(complete(words[1:])))
        return EXIT_DONE
    from largeforge.config.command_line import read_flags

    flags = read_flags(words)
    if flags.version:
        from largeforge import __version__

        print(f"largeforge {__version__}")
    elif flags.completion:
        from largeforge.config.completion import script

        print(script(flags.completion))
    elif flags.schema:
        from largeforge.config.schema import recipe_schema_text

        print(recipe_schema_text(flags.config_dirs))
    elif flags.help or not (flags.words or flags.cfg):
        print(_help(words))
    elif flags.cfg or flags.origins:
        from largeforge.config.shown import config_text, origins_text

        print(origins_text(words) if flags.origins else config_text(words, flags.cfg or "job"), end="")
    elif flags.multirun:
        from largeforge.config.sweep import sweep

        return sweep(words)
    else:
        from largeforge.config.compose import compose

        composed = compose(words, files=True)
        from largeforge.run import execute

        return execute(composed)
    return EXIT_DONE


def _help(words: list[str]) -> str:
    from largeforge.config.command_line import read_flags
    from largeforge.config.help import overview, task_help

    flags = read_flags(words)
    return task_help(words) if flags.words else overview(flags.config_dirs)


if __name__ == "__main__":
    sys.exit(main())
