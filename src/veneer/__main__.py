"""`python -m veneer`, the same as the `veneer` command."""

from veneer.cli import main

if __name__ == "__main__":
    main()
