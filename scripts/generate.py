"""Write what is made from the command tree: completions/ and docs/cli.md.

python scripts/generate.py            # write
python scripts/generate.py --check    # exit 1 when something would change
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELLS = {"bash": "qwench.bash", "zsh": "_qwench", "fish": "qwench.fish"}


def run(*args: str, **env: str) -> str:
    """Standard output of `qwench ARGS` in a plain 100-column terminal and an empty home."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("QWENCH", "_TYPER"))}
    plain = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "QWENCH_HOME": "/nonexistent"}
    code = "import sys; sys.argv[0] = 'qwench'; from qwench.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *args], env=clean | plain | env, capture_output=True, text=True)
    return done.stdout


def completion(shell: str) -> str:
    """The completion shim of a shell."""
    return run(_QWENCH_COMPLETE=f"source_{shell}").strip() + "\n"


def commands() -> list[tuple[str, ...]]:
    """Paths of the commands in the order of the table, each group's own before its first."""
    from qwench.cli.main import COMMANDS

    return list(dict.fromkeys(c.path[:n] for c in COMMANDS for n in range(1, len(c.path) + 1)))


def reference() -> str:
    """docs/cli.md."""
    parts = [
        "# Command reference\n",
        "Made by `make docs` from the command tree; do not edit.\n",
        section("qwench", run("--help")),
        *(section(f"qwench {' '.join(path)}", run(*path, "--help")) for path in commands()),
    ]
    return "\n".join(parts)


def section(title: str, text: str) -> str:
    """A heading and a help text."""
    body = re.sub(r"[ \t]+$", "", text, flags=re.M).strip()
    return f"## {title}\n\n```text\n{body}\n```\n"


def files() -> dict[Path, str]:
    """Every generated file with its content."""
    made = {ROOT / "completions" / name: completion(shell) for shell, name in SHELLS.items()}
    return made | {ROOT / "docs" / "cli.md": reference()}


def main() -> int:
    changed = [p for p, text in files().items() if not p.is_file() or p.read_text("utf-8") != text]
    for path in changed:
        print(path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files()[path], "utf-8")
    return 1 if changed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
