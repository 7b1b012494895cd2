"""``python -m flamingo_eval``: the same as the ``flamingo-eval`` command."""

from flamingo_eval.cli.main import main

if __name__ == "__main__":
    main()
