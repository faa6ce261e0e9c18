"""`python -m jaxce`: the same as the `jaxce` command."""

from jaxce.cli import main

if __name__ == "__main__":
    main()
