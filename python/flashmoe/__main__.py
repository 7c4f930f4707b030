"""``python -m flashmoe``: the command line."""

from flashmoe.cli import main

if __name__ == "__main__":
    main()
