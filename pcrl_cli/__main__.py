"""The `pcrl` command, also as `python -m pcrl_cli` for torchrun."""

import sys


def main() -> None:
    """Runs the command; interrupted while its modules are still being imported, it ends with 130 and says nothing."""
    try:
        from pcrl_cli.cli.app import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
