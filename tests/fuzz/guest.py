"""Fuzz the decoders of the guest's C programs under AddressSanitizer and UndefinedBehaviorSanitizer.

python -m tests.fuzz.guest [ROUNDS] [SEED]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from testbed.machines.guest import recipe

SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def main(rounds: int, seed: int) -> int:
    """Compile them with the harness, and return how many inputs it gave them; CalledProcessError at a fault."""
    with TemporaryDirectory(prefix="fuzz-guest-") as folder:
        program = Path(folder, "guest")
        source = Path(__file__).with_suffix(".c")
        subprocess.run(
            ("cc", *SANITIZED, "-Wall", "-Wextra", "-Werror", "-I", recipe.FOLDER, "-o", program, source),
            check=True,
            capture_output=True,
            text=True,
        )
        words = (program, str(rounds), str(seed))
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.stdout.write(f"{main(*given, *(100_000, 1)[len(given) :])}\n")
