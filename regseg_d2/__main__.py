"""``python -m regseg_d2 COMMAND``: what ``regseg COMMAND`` does, where the script is not on the path."""

from regseg_d2.commands.regseg import main

if __name__ == "__main__":
    main()
