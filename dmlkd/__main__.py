"""``python -m dmlkd``."""

from dmlkd.cli import main

if __name__ == "__main__":
    main()
