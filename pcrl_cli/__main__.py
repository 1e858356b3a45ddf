"""`python -m pcrl_cli`, for torchrun."""

from pcrl_cli.cli.app import main

if __name__ == "__main__":
    main()
