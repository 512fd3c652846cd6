"""`python -m raytrain` is the command `raytrain`."""

from raytrain.cli.main import main

if __name__ == "__main__":
    main()
