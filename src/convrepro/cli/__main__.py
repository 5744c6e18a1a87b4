"""`python -m convrepro.cli`, as the job scripts call it."""

from convrepro.cli.main import main

if __name__ == "__main__":
    main()
