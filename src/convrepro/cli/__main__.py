"""Runs the command line as `python -m convrepro.cli`, as the job scripts do."""

from convrepro.cli.main import main

if __name__ == "__main__":
    main()
