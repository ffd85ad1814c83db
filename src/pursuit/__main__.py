"""`python -m pursuit`: the `pursuit` command, of the interpreter that is named."""

from pursuit.cli import main

if __name__ == "__main__":
    main()
