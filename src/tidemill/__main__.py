"""`python -m tidemill`: the command line without its installed name."""

from tidemill.apps.cli import main

if __name__ == "__main__":
    main()
